# SPDX-License-Identifier: Apache-2.0
"""Guest RAM as it is given to KVM, and the pages that its owner populates and discards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

import pytest

from pykvm import Vm, abi
from pyvmm.memory.errors import HostMemoryUnavailable
from pyvmm.memory.ram import Ram
from pyvmm.memory.rss import resident_bytes
from pyvmm.units import GIB, MIB
from pyvmm_native.pages import touched
from pyvmm_native.runs import PageRuns

HUGE_PAGE_BYTES = 2 * MIB


class VmWithSlots:
    """Keeps (gpa, size in bytes, host address, flags) of each memory slot."""

    def __init__(self) -> None:
        self.slots: dict[int, tuple[int, int, int, int]] = {}

    def set_user_memory_region(
        self, slot: int, gpa: int, size_bytes: int, address: int, flags: int = 0
    ) -> None:
        self.slots[slot] = (gpa, size_bytes, address, flags)


def slots(ram: Ram, flags: int = 0) -> dict[int, tuple[int, int, int, int]]:
    vm = VmWithSlots()
    ram.attach(cast(Vm, vm), flags)
    return vm.slots


def test_ram_is_one_slot_or_two_around_the_pci_hole() -> None:
    assert [slot[:2] for slot in slots(Ram(64 * MIB)).values()] == [(0, 64 * MIB)]
    two = slots(Ram(4 * GIB))
    assert {number: slot[:2] for number, slot in two.items()} == {
        0: (0, 3 * GIB),
        1: (4 * GIB, GIB),
    }


def test_the_flags_of_all_slots_change_together() -> None:
    logged = slots(Ram(4 * GIB), abi.KVM_MEM_LOG_DIRTY_PAGES)
    assert [flags for *_, flags in logged.values()] == [abi.KVM_MEM_LOG_DIRTY_PAGES] * 2


@pytest.mark.parametrize("mib", [64, 65, 67, 4097, 4099])
def test_kvm_can_use_huge_pages(mib: int) -> None:
    """Guest-physical and host-virtual addresses agree modulo 2 MiB."""
    rams = [Ram(mib * MIB) for _ in range(4)]
    for ram in rams:
        for gpa, _, address, _ in slots(ram).values():
            assert (gpa - address) % HUGE_PAGE_BYTES == 0


def test_a_listener_sees_pages_before_they_are_discarded() -> None:
    ram = Ram(64 * MIB)
    ram.memory.write(5 << 12, b"x" * 4096)
    seen: list[tuple[PageRuns, bytes]] = []
    ram.before_discard.add(lambda runs: seen.append((runs, ram.memory.read(5 << 12, 1))))
    assert ram.discard(PageRuns([(5, 1)])) == 4096
    assert seen == [(PageRuns([(5, 1)]), b"x")]
    assert ram.memory.read(5 << 12, 1) == b"\0"


def test_closed_ram_reads_as_zeros() -> None:
    ram = Ram(4 * GIB)
    for gpa in (0, 3 * GIB - 1, 4 * GIB, 5 * GIB - 1):
        ram.memory.write(gpa, b"x")
    ram.close()
    assert {ram.memory.read(gpa, 1) for gpa in (0, 3 * GIB - 1, 4 * GIB, 5 * GIB - 1)} == {b"\0"}


def test_populated_ram_is_resident_and_keeps_its_contents() -> None:
    ram = Ram(64 * MIB)
    ram.memory.write(5 * MIB, b"written before")
    before = resident_bytes()
    ram.populate()
    assert resident_bytes() - before > 60 * MIB
    assert ram.memory.read(5 * MIB, 14) == b"written before"
    full = resident_bytes()
    ram.discard(PageRuns([(0, 32 * MIB // 4096)]))
    assert full - resident_bytes() > 31 * MIB
    ram.close()


def test_memory_that_becomes_zero_is_freed() -> None:
    ram = Ram(64 * MIB, transparent=False)  # huge pages would touch more than was written
    ram.memory.write(0, b"x" * (8 << 12))
    ram.zero(PageRuns([(1, 2)]))
    assert touched(ram.memory, PageRuns([(0, 8)])) == PageRuns([(0, 1), (3, 5)])


@pytest.mark.parametrize(("transparent", "flag"), [(True, "hg"), (False, "nh")])
def test_the_kernel_is_told_whether_huge_pages_are_welcome(transparent: bool, flag: str) -> None:
    ram = Ram(64 * MIB, transparent=transparent)
    (slot,) = slots(ram).values()
    mappings = Path("/proc/self/smaps").read_text().split("VmFlags:")
    index = next(i for i, text in enumerate(mappings) if contains(text, slot[2]))
    assert flag in mappings[index + 1].splitlines()[0].split()


def contains(mapping: str, address: int) -> bool:
    """Return whether the mapping, in the format of /proc/self/smaps, contains `address`."""
    found = re.search(r"^([0-9a-f]+)-([0-9a-f]+) ", mapping, re.MULTILINE)
    return bool(found and int(found[1], 16) <= address < int(found[2], 16))


def test_memory_that_the_host_cannot_map_is_reported_with_its_size() -> None:
    with pytest.raises(HostMemoryUnavailable, match="cannot map 268435456 MiB"):
        Ram(256 * 1024 * GIB)
