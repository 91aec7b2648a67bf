# SPDX-License-Identifier: Apache-2.0
"""RAM that benchmarks discard: its pages have the wanted size, and other memory is left alone."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("bench")

from bench.touched_ram import HUGE_PAGE_PAGES, DiscardedPages, TouchedRam, have_huge_pages
from pyvmm.memory.huge_page_pool import transparent_bytes
from pyvmm.units import HUGE_PAGE_BYTES, MIB
from pyvmm_native.runs import PageRuns

RAM_BYTES = 64 * MIB
FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


@pytest.fixture
def ram() -> Iterator[TouchedRam]:
    if not have_huge_pages():
        pytest.skip("this machine has no transparent huge pages")
    ram = TouchedRam(RAM_BYTES)
    yield ram
    ram.close()


def flags_at(address: int) -> list[str]:
    """Return the flags of the mapping that has `address` (proc_pid_smaps(5))."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *values = line.split()
        if not name.endswith(":"):
            start, end = (int(each, 16) for each in name.split("-"))
            inside = start <= address < end
        elif inside and name == "VmFlags:":
            return values
    raise AssertionError(f"nothing is mapped at {address:#x}")


def test_discarded_pages_are_populated_again_in_pages_of_the_same_size(ram: TouchedRam) -> None:
    small = transparent_bytes()
    for huge in (True, False):
        ram.use_huge_pages(huge)
        pages = PageRuns([(3 * HUGE_PAGE_PAGES + 7, 2 * HUGE_PAGE_PAGES)])
        discarded = DiscardedPages(ram, pages)
        ram.discard(pages)
        ram.assert_discarded(discarded)
        ram.touch(discarded)
        assert set(ram.presence()) == {1}
        assert abs(transparent_bytes() - small - huge * RAM_BYTES) <= 2 * HUGE_PAGE_BYTES


def test_only_its_own_memory_is_kept_from_khugepaged(ram: TouchedRam) -> None:
    for huge in (True, False):
        ram.use_huge_pages(huge)
        assert all("nh" in flags_at(address) for address, _ in ram.host_ranges(ram.pages))
        with mmap.mmap(-1, 4 * HUGE_PAGE_BYTES, flags=FLAGS) as other:
            other.madvise(mmap.MADV_HUGEPAGE)
            before = transparent_bytes()
            other[:] = bytes([1]) * len(other)
            assert transparent_bytes() - before >= 2 * HUGE_PAGE_BYTES
