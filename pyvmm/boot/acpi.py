# SPDX-License-Identifier: Apache-2.0
"""The ACPI tables that describe the platform to the guest (ACPI 6.4, chapter 5).

`build_tables` lays out RSDP, FACS, DSDT, FADT, MADT and XSDT one after another in one blob for the
area below 1 MiB, where an operating system looks for the RSDP on 16-byte boundaries; the boot
protocol passes its address as well. All numbers come from `pyvmm.memory.layout` and the device
models. They describe the vCPUs and the IO-APIC (MADT), power-off and reset (FADT, \\_S5), the
PCI host bridge with its windows and interrupt routing, the serial port and pvpanic (DSDT), and the
memory-mapped PCI configuration space (MCFG). They declare that there is no 8042, no VGA and no PM
timer, so the guest does not probe for them.
"""

from __future__ import annotations

import struct

from devices.legacy import acpi_registers as registers
from pyvmm.boot import aml
from pyvmm.memory import layout

_OEM_ID = b"PYVMM "
_OEM_TABLE_ID = b"PYVMM   "
_CREATOR_ID = b"PYVM"
_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_FACS_BYTES = 64
_RSDP_BYTES = 36
_ALIGNMENT = 64  # of the FACS (5.2.10)

_FADT_REVISION, _FADT_MINOR_REVISION = 6, 4
_FADT_BYTES = 276
# IAPC_BOOT_ARCH (5.2.9.3): there are ISA devices (COM1); no 8042; VGA must not be probed.
_BOOT_ARCH = 1 << 0 | 1 << 2
# Flags (5.2.9, table 5.10): WBINVD, PROC_C1, no fixed power button, no fixed sleep button,
# no fixed RTC wake-up, RESET_REG.
_FADT_FLAGS = 1 << 0 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 10
_NO_C2_C3_LATENCY = 0xFFFF

_MADT_PCAT_COMPAT = 1  # there are 8259s to be masked
_LAPIC_ENABLED = 1
_ACTIVE_HIGH_LEVEL = 0x0D  # MPS INTI flags (5.2.12.5)
_ALL_PROCESSORS = 0xFF


def build_tables(*, vcpus: int, base_gpa: int = layout.ACPI_GPA) -> tuple[bytes, int]:
    """Return all tables as one blob to be put at `base_gpa`, and the RSDP's address.

    vCPU n has local APIC id n. `base_gpa` is a multiple of 64.
    """
    blob = bytearray(_ALIGNMENT)  # the RSDP, which needs the XSDT's address, comes last

    def place(table: bytes) -> int:
        gpa = base_gpa + len(blob)
        blob.extend(table.ljust((len(table) + _ALIGNMENT - 1) & -_ALIGNMENT, b"\0"))
        return gpa

    facs_gpa = place(_facs())
    dsdt_gpa = place(_dsdt())
    fadt_gpa = place(_fadt(facs_gpa, dsdt_gpa))
    madt_gpa = place(_madt(vcpus))
    mcfg_gpa = place(_mcfg())
    xsdt_gpa = place(_table(b"XSDT", 1, struct.pack("<QQQ", fadt_gpa, madt_gpa, mcfg_gpa)))
    blob[:_RSDP_BYTES] = _rsdp(xsdt_gpa)
    return bytes(blob), base_gpa


def _checksum(data: bytes) -> int:
    """Return the byte that makes the sum of `data` and itself 0 modulo 256."""
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """Prepend the system description table header (5.2.6) with its checksum to `body`."""
    length = _HEADER.size + len(body)
    fields = (_OEM_ID, _OEM_TABLE_ID, 1, _CREATOR_ID, 1)
    unsigned = _HEADER.pack(signature, length, revision, 0, *fields) + body
    return _HEADER.pack(signature, length, revision, _checksum(unsigned), *fields) + body


def _rsdp(xsdt_gpa: int) -> bytes:
    """Return the RSDP (5.2.5.3), without an RSDT: every 64-bit system uses the XSDT."""
    first = struct.pack("<8sB6sBI", b"RSD PTR ", 0, _OEM_ID, 2, 0)
    first = first[:8] + bytes([_checksum(first)]) + first[9:]
    whole = first + struct.pack("<IQB3x", _RSDP_BYTES, xsdt_gpa, 0)
    return whole[:32] + bytes([_checksum(whole)]) + whole[33:]


def _facs() -> bytes:
    """Return the firmware ACPI control structure (5.2.10): only its global lock is used."""
    return struct.pack("<4sI", b"FACS", _FACS_BYTES).ljust(32, b"\0") + bytes([2]).ljust(32, b"\0")


def _io_register(port: int, size_bytes: int) -> bytes:
    """Return the generic address structure of an I/O register, or of an absent one (5.2.3.2)."""
    access = {0: 0, 1: 1}.get(size_bytes, 2)  # bytes, else words: PM1 registers are words
    return struct.pack("<BBBBQ", 1 if size_bytes else 0, 8 * size_bytes, 0, access, port)


def _fadt(facs_gpa: int, dsdt_gpa: int) -> bytes:
    """Return the fixed ACPI description table (5.2.9)."""
    event_port = layout.ACPI_PM_PORT + registers.PM1A_EVENT_OFFSET
    control_port = layout.ACPI_PM_PORT + registers.PM1A_CONTROL_OFFSET
    reset_port = layout.ACPI_PM_PORT + registers.RESET_OFFSET
    absent = _io_register(0, 0)
    body = b"".join(
        [
            struct.pack("<IIxBH", facs_gpa, dsdt_gpa, 0, layout.ACPI_SCI_GSI),
            struct.pack("<IBBBB", 0, 0, 0, 0, 0),  # SMI_CMD 0: always in ACPI mode
            # PM1a event, PM1b event, PM1a control, PM1b control, PM2, PM timer, GPE0, GPE1
            struct.pack("<8I", event_port, 0, control_port, 0, 0, 0, 0, 0),
            struct.pack("<8B", registers.PM1A_EVENT_BYTES, registers.PM1A_CONTROL_BYTES, *[0] * 6),
            struct.pack("<HHHHBB", _NO_C2_C3_LATENCY, _NO_C2_C3_LATENCY, 0, 0, 0, 0),
            struct.pack("<BBBHxI", 0, 0, registers.CENTURY_INDEX, _BOOT_ARCH, _FADT_FLAGS),
            _io_register(reset_port, 1),
            struct.pack("<BHB", registers.RESET_VALUE, 0, _FADT_MINOR_REVISION),
            struct.pack("<QQ", 0, dsdt_gpa),  # X_FIRMWARE_CTRL stays 0 when FIRMWARE_CTRL is used
            _io_register(event_port, registers.PM1A_EVENT_BYTES),
            absent,
            _io_register(control_port, registers.PM1A_CONTROL_BYTES),
            absent * 7,  # PM1b control, PM2, PM timer, GPE0, GPE1, sleep control and status
            b"PYVMM".ljust(8, b"\0"),  # hypervisor vendor identity
        ]
    )
    return _table(b"FACP", _FADT_REVISION, body)


def _madt(vcpus: int) -> bytes:
    """Return the multiple APIC description table (5.2.12)."""
    entries = [struct.pack("<II", layout.LAPIC_GPA, _MADT_PCAT_COMPAT)]
    entries += [struct.pack("<BBBBI", 0, 8, n, n, _LAPIC_ENABLED) for n in range(vcpus)]
    entries += [
        struct.pack("<BBBxII", 1, 12, 0, layout.IOAPIC_GPA, 0),
        _override(layout.PIT_GSI, layout.PIT_IOAPIC_PIN, 0),
        _override(layout.ACPI_SCI_GSI, layout.ACPI_SCI_GSI, _ACTIVE_HIGH_LEVEL),
        struct.pack("<BBBHB", 4, 6, _ALL_PROCESSORS, 0, 1),  # NMI is wired to LINT1
    ]
    return _table(b"APIC", 5, b"".join(entries))


def _mcfg() -> bytes:
    """Return the MCFG: the ECAM of segment 0, bus 0 (PCI Firmware 3.0, 4.1.2)."""
    return _table(b"MCFG", 1, struct.pack("<8xQHBB4x", layout.PCI_ECAM_GPA, 0, 0, 0))


def _override(isa_irq: int, gsi: int, flags: int) -> bytes:
    """Return an interrupt source override (5.2.12.5): the GSI of an ISA interrupt."""
    return struct.pack("<BBBBIH", 2, 10, 0, isa_irq, gsi, flags)


def _dsdt() -> bytes:
    r"""Return the DSDT: \_S5 and the devices that cannot be probed."""
    sleep_type = aml.integer(registers.SLEEP_TYPE_SOFT_OFF)
    s5 = aml.name("\\_S5", aml.package(sleep_type, sleep_type, aml.integer(0), aml.integer(0)))
    devices = aml.scope("\\_SB", _pci_root(), _reserved(), _serial_port(), _pvpanic())
    return _table(b"DSDT", 2, s5 + devices)


def _pci_root() -> bytes:
    config_end = layout.PCI_CONFIG_PORT + layout.PCI_CONFIG_PORTS
    windows = aml.resources(
        aml.bus_numbers(0, 0),
        aml.io_port(layout.PCI_CONFIG_PORT, layout.PCI_CONFIG_PORTS),
        aml.io_window(0, layout.PCI_CONFIG_PORT - 1),
        aml.io_window(config_end, 0xFFFF),
        aml.memory_window32(layout.MMIO32_GPA, layout.MMIO32_GPA + layout.MMIO32_BYTES - 1),
        aml.memory_window64(layout.MMIO64_GPA, layout.MMIO64_GPA + layout.MMIO64_BYTES - 1),
    )
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_BBN", aml.integer(0)),
        aml.name("_CRS", windows),
        aml.name("_PRT", _interrupt_routing()),
    )


def _reserved() -> bytes:
    """Return the motherboard resources, which must include the memory of the MCFG (4.1.2)."""
    return aml.device(
        "MBRD",
        aml.name("_HID", aml.eisa_id("PNP0C02")),
        aml.name(
            "_CRS",
            aml.resources(aml.fixed_memory32(layout.PCI_ECAM_GPA, layout.PCI_ECAM_BYTES)),
        ),
    )


def _interrupt_routing() -> bytes:
    """Return _PRT (6.2.13): INTA# of each device is an IO-APIC pin, without a link device."""
    return aml.package(
        *(
            aml.package(
                aml.integer(device << 16 | 0xFFFF),  # any function of the device
                aml.integer(0),  # INTA#
                aml.integer(0),  # no link device: the next field is a GSI
                aml.integer(layout.intx_gsi(device)),
            )
            for device in range(1, 32)
        )
    )


def _serial_port() -> bytes:
    return aml.device(
        "COM1",
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", aml.integer(1)),
        aml.name(
            "_CRS",
            aml.resources(
                aml.io_port(layout.COM1_PORT, layout.COM1_PORTS), aml.irq(layout.COM1_GSI)
            ),
        ),
    )


def _pvpanic() -> bytes:
    return aml.device(
        "PEVT",
        aml.name("_HID", aml.string("QEMU0001")),
        aml.name("_CRS", aml.resources(aml.io_port(layout.PVPANIC_PORT, 1))),
    )
