# SPDX-License-Identifier: Apache-2.0
"""The MP configuration table, parsed as MultiProcessor Specification 1.4 defines it."""

from __future__ import annotations

import struct

import pytest

from pyvmm.boot.mp_table import build_table
from pyvmm.config import MAX_VCPUS
from pyvmm.memory import layout

ENTRY_BYTES = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}


def entries(blob: bytes) -> dict[int, list[bytes]]:
    """Return the entries by type."""
    count, found = struct.unpack_from("<H", blob, 16 + 34)[0], dict[int, list[bytes]]()
    rest = blob[16 + 44 :]
    for _ in range(count):
        entry = rest[: ENTRY_BYTES[rest[0]]]
        found.setdefault(entry[0], []).append(entry)
        rest = rest[len(entry) :]
    assert not rest
    return found


def test_pointer_and_table_have_their_lengths_and_checksums() -> None:
    blob = build_table(vcpus=MAX_VCPUS)
    assert len(blob) <= layout.MP_TABLE_BYTES
    pointer, table = blob[:16], blob[16:]
    signature, gpa, length, revision = struct.unpack_from("<4sIBB", pointer)
    assert (signature, gpa, length, revision) == (b"_MP_", layout.MP_TABLE_GPA + 16, 1, 4)
    assert struct.unpack_from("<4sHB", table) == (b"PCMP", len(table), 4)
    assert struct.unpack_from("<I", table, 36)[0] == layout.LAPIC_GPA
    assert sum(pointer) & 0xFF == sum(table) & 0xFF == 0


@pytest.mark.parametrize("vcpus", [1, 2, MAX_VCPUS])
def test_every_vcpu_is_enabled_and_the_first_boots(vcpus: int) -> None:
    found = entries(build_table(vcpus=vcpus))
    assert [(entry[1], entry[3]) for entry in found[0]] == [
        (index, 0b11 if index == 0 else 0b01) for index in range(vcpus)
    ]
    (ioapic,) = found[2]
    assert ioapic[1] == vcpus, "an APIC id that no vCPU has"
    assert struct.unpack_from("<I", ioapic, 4)[0] == layout.IOAPIC_GPA


def test_interrupts_are_wired_as_the_layout_says() -> None:
    found = entries(build_table(vcpus=1))
    buses = {entry[1]: entry[2:].decode().strip() for entry in found[1]}
    assert buses == {0: "PCI", 1: "ISA"}
    wiring = {}
    for _, kind, flags, bus, source, ioapic, pin in map(struct.Struct("<BBHBBBB").unpack, found[3]):
        assert (kind, ioapic) == (0, 1)
        wiring[buses[bus], source] = (pin, flags)
    pci = {
        ("PCI", slot << 2): (layout.intx_gsi(slot), 0b1111)  # level, active low
        for slot in range(1, 32)
    }
    isa = {("ISA", irq): (irq, 0) for irq in (1, 3, 4, 6, 7, 8, 9, 12, 13, 14, 15)}
    assert wiring == {**pci, **isa, ("ISA", 0): (2, 0)}


def test_the_8259s_and_nmis_are_wired_to_local_apics() -> None:
    found = entries(build_table(vcpus=2))
    assert [(entry[1], entry[6], entry[7]) for entry in found[4]] == [(3, 0xFF, 0), (1, 0xFF, 1)]
