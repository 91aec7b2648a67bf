# SPDX-License-Identifier: Apache-2.0
"""The ACPI tables, located and parsed from the RSDP on, as an operating system does."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.boot import aml
from pyvmm.boot.acpi import build_tables
from pyvmm.config import MAX_VCPUS
from pyvmm.memory import layout

VCPUS = 4


class AcpiTables:
    """All tables of a blob, by signature."""

    def __init__(self, vcpus: int = VCPUS, base_gpa: int = layout.ACPI_GPA) -> None:
        self.blob, self.rsdp_gpa = build_tables(vcpus=vcpus, base_gpa=base_gpa)
        self.base_gpa = base_gpa
        self.rsdp = self.at(self.rsdp_gpa, 36)
        self.xsdt = self.table(struct.unpack_from("<Q", self.rsdp, 24)[0])
        entries = [gpa for (gpa,) in struct.iter_unpack("<Q", self.xsdt[36:])]
        self.by_signature = {table[:4].decode(): table for table in map(self.table, entries)}
        self.fadt = self.by_signature["FACP"]
        self.madt = self.by_signature["APIC"]
        self.facs = self.table(struct.unpack_from("<I", self.fadt, 36)[0])
        self.dsdt = self.table(struct.unpack_from("<Q", self.fadt, 140)[0])

    def at(self, gpa: int, length: int) -> bytes:
        start = gpa - self.base_gpa
        assert 0 <= start <= start + length <= len(self.blob)
        return self.blob[start : start + length]

    def table(self, gpa: int) -> bytes:
        return self.at(gpa, struct.unpack("<I", self.at(gpa + 4, 4))[0])


# --- Finding them -----------------------------------------------------------------------------
def test_the_rsdp_lies_where_systems_search_for_it() -> None:
    tables = AcpiTables()
    assert tables.rsdp.startswith(b"RSD PTR ")
    assert tables.rsdp_gpa % 16 == 0
    assert 0xE0000 <= tables.rsdp_gpa < 0x100000
    assert layout.ACPI_GPA + len(tables.blob) <= layout.HIGH_MEMORY_GPA
    assert sum(tables.rsdp[:20]) % 256 == 0
    assert sum(tables.rsdp) % 256 == 0
    assert tables.rsdp[15] == 2


def test_the_tables_can_be_built_for_another_address() -> None:
    tables = AcpiTables(base_gpa=0xF0000)
    assert tables.rsdp_gpa == 0xF0000
    assert set(tables.by_signature) == {"FACP", "APIC", "MCFG"}


@pytest.mark.parametrize("vcpus", [1, 4, MAX_VCPUS])
def test_checksums_and_headers_are_valid(vcpus: int) -> None:
    tables = AcpiTables(vcpus)
    for table in (tables.xsdt, tables.dsdt, *tables.by_signature.values()):
        assert sum(table) % 256 == 0
        assert table[10:16] == b"PYVMM "
        assert struct.unpack_from("<I", table, 4)[0] == len(table)


def test_every_table_and_the_facs_are_aligned() -> None:
    tables = AcpiTables()
    facs_gpa = struct.unpack_from("<I", tables.fadt, 36)[0]
    assert facs_gpa % 64 == 0
    assert tables.facs[:4] == b"FACS"
    assert len(tables.facs) == 64
    assert tables.facs[32] == 2


# --- FADT -------------------------------------------------------------------------------------
def gas(data: bytes, offset: int) -> tuple[int, int, int]:
    """Return (space, bits, address) of the generic address structure at `offset`."""
    space, bits, _offset, _access, address = struct.unpack_from("<BBBBQ", data, offset)
    return space, bits, address


def test_fadt_describes_the_power_management_ports() -> None:
    fadt = AcpiTables().fadt
    assert len(fadt) == 276
    assert (fadt[8], fadt[131]) == (6, 4)
    event, control = layout.ACPI_PM_PORT, layout.ACPI_PM_PORT + 4
    assert struct.unpack_from("<8I", fadt, 56) == (event, 0, control, 0, 0, 0, 0, 0)
    assert tuple(fadt[88:95]) == (4, 2, 0, 0, 0, 0, 0)
    assert gas(fadt, 148) == (1, 32, event)
    assert gas(fadt, 172) == (1, 16, control)
    assert not any(fadt[160:172])
    assert not any(fadt[184:268])
    assert struct.unpack_from("<H", fadt, 46)[0] == layout.ACPI_SCI_GSI
    assert struct.unpack_from("<I", fadt, 48)[0] == 0  # no SMI command: always ACPI mode
    assert struct.unpack_from("<I", fadt, 40)[0] == struct.unpack_from("<Q", fadt, 140)[0]


def test_fadt_describes_the_reset_register_and_flags() -> None:
    fadt = AcpiTables().fadt
    flags = struct.unpack_from("<I", fadt, 112)[0]
    assert flags & 1 << 10  # RESET_REG_SUP
    assert flags & 1 << 4  # no fixed power button
    assert flags & 1 << 5  # no fixed sleep button
    assert not flags & 1 << 20  # not hardware-reduced
    assert gas(fadt, 116) == (1, 8, layout.ACPI_PM_PORT + 8)
    assert fadt[128] == 1
    assert fadt[108] == 0x32  # century in the CMOS


def test_fadt_declares_absent_hardware() -> None:
    boot_architecture = struct.unpack_from("<H", AcpiTables().fadt, 109)[0]
    assert boot_architecture & 1 << 0  # ISA devices: COM1
    assert not boot_architecture & 1 << 1  # no 8042
    assert boot_architecture & 1 << 2  # no VGA
    assert not boot_architecture & 1 << 3  # MSI works
    assert not boot_architecture & 1 << 5  # the RTC is there


# --- MADT -------------------------------------------------------------------------------------
def entries(madt: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 44
    while offset < len(madt):
        kind, length = madt[offset], madt[offset + 1]
        assert length >= 2
        yield kind, madt[offset : offset + length]
        offset += length
    assert offset == len(madt)


@pytest.mark.parametrize("vcpus", [1, 4, 8])
def test_madt_lists_the_vcpus(vcpus: int) -> None:
    found = [entry for kind, entry in entries(AcpiTables(vcpus).madt) if kind == 0]
    assert found == [struct.pack("<BBBBI", 0, 8, n, n, 1) for n in range(vcpus)]


def test_madt_describes_the_interrupt_controllers_of_kvm() -> None:
    madt = AcpiTables().madt
    assert struct.unpack_from("<II", madt, 36) == (0xFEE0_0000, 1)
    rest = [entry for kind, entry in entries(madt) if kind != 0]
    assert rest == [
        struct.pack("<BBBBII", 1, 12, 0, 0, 0xFEC0_0000, 0),
        struct.pack("<BBBBIH", 2, 10, 0, 0, 2, 0),  # the timer is on pin 2
        struct.pack("<BBBBIH", 2, 10, 0, 9, 9, 0x0D),  # SCI: level, active high
        struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1),  # NMI on LINT1
    ]


# --- MCFG -------------------------------------------------------------------------------------
def test_mcfg_memory_is_a_motherboard_resource() -> None:
    mcfg = AcpiTables().by_signature["MCFG"]
    assert len(mcfg) == 60
    gpa, segment, first_bus, last_bus = struct.unpack_from("<QHBB", mcfg, 44)
    assert (segment, first_bus, last_bus) == (0, 0, 0)
    board = device(AcpiTables().dsdt, b"MBRD")
    assert named(board, b"_HID").startswith(b"\x0c\x41\xd0\x0c\x02")  # PNP0C02
    assert resources_of(board) == [struct.pack("<BHBII", 0x86, 9, 1, gpa, 1 << 20)]
    assert gpa == layout.PCI_ECAM_GPA


# --- DSDT -------------------------------------------------------------------------------------
def body_of(package: bytes) -> bytes:
    """Return the bytes that the package length at the start of `package` covers."""
    extra = package[0] >> 6
    length = package[0] & (0x0F if extra else 0x3F)
    length |= int.from_bytes(package[1 : 1 + extra], "little") << 4
    assert length <= len(package)
    return package[1 + extra : length]


def named(scope: bytes, name: bytes) -> bytes:
    """Return the bytes after Name (name, in `scope`."""
    assert scope.count(b"\x08" + name) == 1
    return scope.split(b"\x08" + name)[1]


def device(dsdt: bytes, name: bytes) -> bytes:
    for part in dsdt.split(b"\x5b\x82")[1:]:
        body = body_of(part)
        if body.startswith(name):
            return body
    raise AssertionError(f"no device {name!r}")


def resources_of(scope: bytes) -> list[bytes]:
    """Return the descriptors of _CRS, without the end tag."""
    crs = named(scope, b"_CRS")
    assert crs[0] == 0x11
    body = body_of(crs[1:])
    assert body[0] == 0x0A
    data = body[2:]
    assert len(data) == body[1]
    found = []
    while data[0] != 0x79:
        large = data[0] & 0x80
        length = 3 + struct.unpack_from("<H", data, 1)[0] if large else 1 + (data[0] & 7)
        found.append(data[:length])
        data = data[length:]
    assert len(data) == 2
    return found


def test_s5_has_the_sleep_type_of_soft_off() -> None:
    dsdt = AcpiTables().dsdt
    assert body_of(named(dsdt, b"\\_S5_")[1:]) == bytes([4, 0x0A, 5, 0x0A, 5, 0, 0])


def test_com1_is_described() -> None:
    com1 = device(AcpiTables().dsdt, b"COM1")
    assert named(com1, b"_HID").startswith(b"\x0c\x41\xd0\x05\x01")  # PNP0501
    io, irq = resources_of(com1)
    assert io == struct.pack("<BBHHBB", 0x47, 1, 0x3F8, 0x3F8, 1, 8)
    assert irq == struct.pack("<BH", 0x22, 1 << 4)


def test_pvpanic_is_described() -> None:
    pvpanic = device(AcpiTables().dsdt, b"PEVT")
    assert named(pvpanic, b"_HID").startswith(b"\x0dQEMU0001\0")
    assert resources_of(pvpanic) == [struct.pack("<BBHHBB", 0x47, 1, 0x505, 0x505, 1, 1)]


def test_pci_windows_are_those_of_the_layout() -> None:
    root = device(AcpiTables().dsdt, b"PCI0")
    assert named(root, b"_HID").startswith(b"\x0c\x41\xd0\x0a\x03")  # PNP0A03
    bus, config, low_io, high_io, memory32, memory64 = resources_of(root)
    assert struct.unpack_from("<5H", bus, 6) == (0, 0, 0, 0, 1)
    assert config == struct.pack("<BBHHBB", 0x47, 1, 0xCF8, 0xCF8, 1, 8)
    assert struct.unpack_from("<5H", low_io, 6) == (0, 0, 0xCF7, 0, 0xCF8)
    assert struct.unpack_from("<5H", high_io, 6) == (0, 0xD00, 0xFFFF, 0, 0xF300)
    windows = [struct.unpack_from("<5I", memory32, 6), struct.unpack_from("<5Q", memory64, 6)]
    assert [(first, length) for _, first, _, _, length in windows] == list(layout.PCI_WINDOWS)
    assert all(last == first + length - 1 for _, first, last, _, length in windows)


def test_prt_routes_intx_as_the_layout_does() -> None:
    prt = named(device(AcpiTables().dsdt, b"PCI0"), b"_PRT")
    assert prt[0] == 0x12
    body = body_of(prt[1:])
    count, data = body[0], body[1:]
    wiring = {}
    while data:
        element = body_of(data[1:])
        assert element[0] == 4
        assert element[6:8] == b"\0\0"  # INTA#, no link device
        wiring[struct.unpack_from("<I", element, 2)[0] >> 16] = element[9]
        data = data[1 + 1 + len(element) :]
    assert count == len(wiring)
    assert wiring == {slot: layout.intx_gsi(slot) for slot in range(1, 32)}
    # Those that both the 8259s and the IO-APIC have, and no ISA device.
    assert set(wiring.values()) == {5, 10, 11}


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (acpica-tools) is not installed")
def test_iasl_disassembles_and_recompiles_the_dsdt(tmp_path: Path) -> None:
    (tmp_path / "dsdt.aml").write_bytes(AcpiTables().dsdt)
    for command in (["iasl", "-d", "dsdt.aml"], ["iasl", "-we", "-p", "again", "dsdt.dsl"]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "0 Errors, 0 Warnings" in done.stdout


# --- AML encodings (ACPI 6.4, 20.2) ------------------------------------------------------------
@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (1, "01"),
        (2, "0a02"),
        (0xFF, "0aff"),
        (0x100, "0b0001"),
        (0x1_0000, "0c00000100"),
        (0xFFFF_FFFF, "0cffffffff"),
        (0x1_0000_0000, "0e0000000001000000"),
    ],
)
def test_integers_have_their_shortest_encoding(value: int, encoded: str) -> None:
    assert aml.integer(value).hex() == encoded


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_integers_that_do_not_fit_64_bits_are_refused(value: int) -> None:
    with pytest.raises((ValueError, OverflowError)):
        aml.integer(value)


@pytest.mark.parametrize("length", [0, 1, 60, 61, 62, 63, 4000, 4093, 4094, 70000])
def test_package_lengths_include_their_own_bytes(length: int) -> None:
    encoded = aml.buffer(bytes(length))
    header = aml.integer(length)
    assert encoded[0] == 0x11
    assert body_of(encoded[1:]) == header + bytes(length)
    extra = encoded[1] >> 6
    assert len(encoded) == 1 + 1 + extra + len(header) + length
    assert extra == (0 if len(header) + length < 63 else 1 if len(header) + length < 4094 else 2)


@pytest.mark.parametrize(
    ("path", "encoded"),
    [
        ("PCI0", b"PCI0"),
        ("\\_S5", b"\\_S5_"),
        ("\\_SB.PCI0", b"\\\x2e_SB_PCI0"),
        ("_SB.PCI0.COM1", b"\x2f\x03_SB_PCI0COM1"),
    ],
)
def test_name_strings_are_encoded_by_segment(path: str, encoded: bytes) -> None:
    assert aml.name(path, aml.integer(0)) == b"\x08" + encoded + b"\0"
