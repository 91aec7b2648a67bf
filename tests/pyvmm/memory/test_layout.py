# SPDX-License-Identifier: Apache-2.0
"""The memory map: nothing overlaps, and RAM of every size is complete."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.config import MAX_RAM_BYTES, MIN_RAM_BYTES
from pyvmm.memory import layout
from pyvmm.units import GIB, MIB
from pyvmm_native import PAGE_BYTES

ram_sizes = st.integers(MIN_RAM_BYTES // MIB, MAX_RAM_BYTES // MIB).map(lambda mib: mib * MIB)

BOOT_DATA = [
    (layout.GDT_GPA, PAGE_BYTES),
    (layout.ZERO_PAGE_GPA, PAGE_BYTES),
    (layout.PAGE_TABLES_GPA, layout.PAGE_TABLES_BYTES),
    (layout.COMMAND_LINE_GPA, layout.COMMAND_LINE_BYTES),
]
DEVICES = [
    (layout.PCI_ECAM_GPA, layout.PCI_ECAM_BYTES),
    *layout.PCI_WINDOWS,
    (layout.IOAPIC_GPA, PAGE_BYTES),
    (layout.LAPIC_GPA, PAGE_BYTES),
    (layout.KVM_IDENTITY_MAP_GPA, PAGE_BYTES),
    (layout.KVM_TSS_GPA, 3 * PAGE_BYTES),
]


def assert_disjoint(ranges: list[tuple[int, int]]) -> None:
    for (start, length), (following, _) in pairwise(sorted(ranges)):
        assert start + length <= following


@given(ram_sizes)
def test_ram_is_complete_and_overlaps_no_device(ram_bytes: int) -> None:
    ranges = list(layout.ram_ranges(ram_bytes))
    assert sum(length for _, length in ranges) == ram_bytes
    assert all(length > 0 for _, length in ranges)
    assert_disjoint([*ranges, *DEVICES])


@given(ram_sizes)
def test_usable_ram_excludes_the_legacy_area(ram_bytes: int) -> None:
    usable = layout.usable_ranges(ram_bytes)
    hidden = layout.HIGH_MEMORY_GPA - layout.EBDA_GPA
    assert sum(length for _, length in usable) == ram_bytes - hidden
    firmware = [
        (layout.ACPI_GPA, layout.ACPI_BYTES),
        (layout.MP_TABLE_GPA, layout.MP_TABLE_BYTES),
        (layout.RESET_VECTOR_GPA, 16),
    ]
    assert_disjoint([*usable, *firmware, *DEVICES])


@given(ram_sizes)
def test_bars_may_be_anywhere_between_ram_and_the_windows(ram_bytes: int) -> None:
    apertures = list(layout.pci_apertures(ram_bytes))
    fixed = [each for each in DEVICES if each not in layout.PCI_WINDOWS]
    assert all(length > 0 for _, length in apertures)
    assert_disjoint([*apertures, *layout.ram_ranges(ram_bytes), *fixed])

    def allowed(gpa: int, size_bytes: int) -> bool:
        return any(gpa >= at and gpa + size_bytes <= at + length for at, length in apertures)

    assert all(allowed(*window) for window in layout.PCI_WINDOWS)
    (_, low_bytes), *high = layout.ram_ranges(ram_bytes)
    above = sum(high[0]) if high else layout.HIGH_RAM_GPA
    assert allowed(above, PAGE_BYTES), "where Linux without ACPI places BARs of 64 bits"
    assert low_bytes == layout.LOW_RAM_END_GPA or allowed(low_bytes, PAGE_BYTES)


def test_ram_above_3_gib_continues_at_4_gib() -> None:
    gib = GIB
    assert layout.ram_ranges(3 * gib) == ((0, 3 * gib),)
    assert layout.ram_ranges(3 * gib + PAGE_BYTES) == ((0, 3 * gib), (4 * gib, PAGE_BYTES))


def test_boot_data_fits_below_the_legacy_area() -> None:
    assert_disjoint([(0, 1), *BOOT_DATA, (layout.EBDA_GPA, 1)])


@pytest.mark.parametrize("gpa", [gpa for gpa, _ in (*BOOT_DATA, *DEVICES)])
def test_tables_and_devices_begin_at_pages(gpa: int) -> None:
    assert gpa % PAGE_BYTES == 0


def test_the_windows_of_the_host_bridge_are_where_the_map_shows_them() -> None:
    (low, low_bytes), (high, high_bytes) = layout.PCI_WINDOWS
    assert (low, low + low_bytes) == (0xC010_0000, 0xFEC0_0000)
    assert (high, high + high_bytes) == (0x8_0000_0000, 0x10_0000_0000)


def test_ports_do_not_overlap() -> None:
    kvm = [(0x20, 2), (0x40, 4), (0x61, 1), (0xA0, 2), (0x4D0, 2)]
    ours = [
        (layout.I8042_DATA_PORT, 1),
        (layout.I8042_COMMAND_PORT, 1),
        (layout.RTC_PORT, 2),
        (layout.POST_PORT, 1),
        (layout.COM1_PORT, layout.COM1_PORTS),
        (layout.PVPANIC_PORT, 1),
        (layout.ACPI_PM_PORT, layout.ACPI_PM_PORTS),
        (layout.PCI_CONFIG_PORT, layout.PCI_CONFIG_PORTS),
    ]
    assert_disjoint([*kvm, *ours])
