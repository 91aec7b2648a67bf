# SPDX-License-Identifier: Apache-2.0
"""The MP configuration table, for guests that do not use ACPI (MultiProcessor Specification 1.4).

It tells them what the MADT and _PRT tell the others (`pyvmm.boot.acpi`): the vCPUs, the IO-APIC and
the wiring of interrupts. Without either, Linux uses one processor and the 8259s, whose interrupts
KVM may lose while a local APIC is enabled. `build_table` returns the floating pointer structure,
which an operating system finds by its signature, and the table after it.
"""

from __future__ import annotations

import struct

from pyvmm.memory import layout

_SPECIFICATION_REVISION = 4  # 1.4
_POINTER_BYTES = 16
_HEADER_BYTES = 44

# Entry types (4.3).
_PROCESSOR, _BUS, _IOAPIC, _INTERRUPT, _LOCAL_INTERRUPT = range(5)
_PROCESSOR_ENABLED, _PROCESSOR_BOOT = 1 << 0, 1 << 1
_APIC_VERSION = 0x14
_FEATURES_FPU_APIC = 1 << 0 | 1 << 9
_IOAPIC_VERSION = 0x11
_IOAPIC_ENABLED = 1
_INT, _NMI, _EXTINT = 0, 1, 3
_AS_THE_BUS = 0
_ACTIVE_LOW_LEVEL = 0b1111
_ALL_LOCAL_APICS = 0xFF

_PCI_BUS, _ISA_BUS = 0, 1  # PCI buses have their own numbers (4.3.2)
_ISA_IRQS = 16
_CASCADE_IRQ = 2


def build_table(*, vcpus: int, base_gpa: int = layout.MP_TABLE_GPA) -> bytes:
    """Return pointer and table as one blob to be put at `base_gpa`, a multiple of 16.

    vCPU n has local APIC id n.
    """
    pointer = struct.pack(
        "<4sIBBB5x", b"_MP_", base_gpa + _POINTER_BYTES, 1, _SPECIFICATION_REVISION, 0
    )
    entries = _entries(vcpus)
    header = struct.pack(
        "<4sHBB8s12sIHHIHBx",
        *(b"PCMP", _HEADER_BYTES + sum(map(len, entries)), _SPECIFICATION_REVISION, 0),
        *(b"PYVMM".ljust(8), b"PYVMM".ljust(12), 0, 0, len(entries), layout.LAPIC_GPA, 0, 0),
    )
    return _with_checksum(pointer, 10) + _with_checksum(header + b"".join(entries), 7)


def _entries(vcpus: int) -> list[bytes]:
    ioapic_id = vcpus  # the next APIC id
    isa_irqs = set(range(_ISA_IRQS)) - {_CASCADE_IRQ, *layout.PCI_INTX_GSIS}
    return [
        *(_processor(index) for index in range(vcpus)),
        struct.pack("<BB6s", _BUS, _PCI_BUS, b"PCI   "),
        struct.pack("<BB6s", _BUS, _ISA_BUS, b"ISA   "),
        struct.pack(
            "<BBBBI", _IOAPIC, ioapic_id, _IOAPIC_VERSION, _IOAPIC_ENABLED, layout.IOAPIC_GPA
        ),
        *(
            _interrupt(_AS_THE_BUS, _ISA_BUS, irq, ioapic_id, _ioapic_pin(irq))
            for irq in sorted(isa_irqs)
        ),
        *(
            # The source is the device number and, in two bits, INTA# (D.3).
            _interrupt(_ACTIVE_LOW_LEVEL, _PCI_BUS, slot << 2, ioapic_id, layout.intx_gsi(slot))
            for slot in range(1, 32)
        ),
        _local_interrupt(_EXTINT, 0),
        _local_interrupt(_NMI, 1),
    ]


def _processor(index: int) -> bytes:
    flags = _PROCESSOR_ENABLED | (_PROCESSOR_BOOT if index == 0 else 0)
    return struct.pack("<BBBBII8x", _PROCESSOR, index, _APIC_VERSION, flags, 0, _FEATURES_FPU_APIC)


def _interrupt(flags: int, bus: int, source: int, ioapic_id: int, pin: int) -> bytes:
    return struct.pack("<BBHBBBB", _INTERRUPT, _INT, flags, bus, source, ioapic_id, pin)


def _local_interrupt(kind: int, lint: int) -> bytes:
    """Wire the 8259s, or NMIs, to an input of every local APIC."""
    return struct.pack(
        "<BBHBBBB", _LOCAL_INTERRUPT, kind, _AS_THE_BUS, _ISA_BUS, 0, _ALL_LOCAL_APICS, lint
    )


def _ioapic_pin(irq: int) -> int:
    return layout.PIT_IOAPIC_PIN if irq == layout.PIT_GSI else irq


def _with_checksum(data: bytes, offset: int) -> bytes:
    """Set the byte at `offset` so that the sum of all is 0 modulo 256."""
    return data[:offset] + bytes([-sum(data) & 0xFF]) + data[offset + 1 :]
