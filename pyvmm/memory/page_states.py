# SPDX-License-Identifier: Apache-2.0
"""The state of the guest's pages, counted by cells of equal size, for a map of memory.

The host's kernel knows which pages it backs (/proc/self/pagemap) and, since Linux 6.7, which of
them are parts of huge pages (PAGEMAP_SCAN, Documentation/admin-guide/mm/pagemap.rst). The other
states come from the balloon and from the guest's last answer about unused pages. A page can have
several states: a page of hugetlbfs can be in the balloon and resident, and an unused page usually
is resident.

Threads: any; it is slow, some ten milliseconds for 8 GiB, and holds no lock. The GIL is released
while the kernel is queried.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

from pykvm import address_of
from pyvmm_native import PAGE_BYTES
from pyvmm_native.memory import GuestMemory
from pyvmm_native.pages import touched
from pyvmm_native.runs import PageRuns

ROW = struct.Struct("<Q5I")
"""A row: the address of a cell, and the pages in it that are resident, in the balloon, unused,
untouched, and parts of huge pages."""

_PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg), <linux/fs.h>
_PAGE_IS_PRESENT, _PAGE_IS_HUGE = 1 << 3, 1 << 6
_SCAN_ARGUMENT = struct.Struct("<12Q")
_REGION = struct.Struct("<3Q")
_REGIONS = 4096


class KnownPages(NamedTuple):
    """Pages whose state the host's kernel does not know."""

    balloon: Sequence[tuple[int, bytes]]
    """Bitmaps of the pages in the balloon, each with its first page frame."""
    unused: PageRuns
    """Pages that the guest has reported as unused, in its last answer."""


class PageStates(NamedTuple):
    """The states of all pages: `rows` of cells, and the pages in the balloon by its driver."""

    rows: bytes
    ballooned_pages: int


def page_states(
    memory: GuestMemory,
    ram: PageRuns,
    areas: Sequence[tuple[int, memoryview]],
    known: KnownPages,
    pages_per_cell: int,
) -> bytes:
    """Return a `ROW` for each cell of `ram`, in ascending order.

    `areas` are the mappings of RAM by guest-physical address. OSError when pagemap cannot be read.
    """
    backed = touched(memory, ram)
    balloon = PageRuns()
    for start_pfn, bits in known.balloon:
        balloon = balloon.union(PageRuns.from_bitmap(bits, start_pfn))
    untouched = ram.subtract(backed).subtract(balloon)
    end = max((start + count for start, count in ram), default=0)
    cells = -(-end // pages_per_cell)
    all_runs = (backed, balloon, known.unused, untouched, huge_pages(areas))
    columns = [runs.intersect(ram).per_cell(pages_per_cell, cells) for runs in all_runs]
    in_ram = ram.per_cell(pages_per_cell, cells)
    return b"".join(
        ROW.pack(index * pages_per_cell * PAGE_BYTES, *counts)
        for index, counts in enumerate(zip(*columns, strict=True))
        if in_ram[index]
    )


def huge_pages(areas: Sequence[tuple[int, memoryview]]) -> PageRuns:
    """Return the pages that are parts of huge pages of the host; none if the kernel cannot tell."""
    found: list[tuple[int, int]] = []
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for gpa, area in areas:
            start = address_of(area)
            for first, end in _scan(pagemap, start, start + len(area)):
                found.append(((gpa + first - start) // PAGE_BYTES, (end - first) // PAGE_BYTES))
    except OSError:  # before Linux 6.7
        return PageRuns()
    finally:
        os.close(pagemap)
    return PageRuns(found)


def _scan(pagemap: int, start: int, end: int) -> list[tuple[int, int]]:
    """Return the (start, end) addresses of huge pages from `start` to `end`. Raises OSError."""
    found: list[tuple[int, int]] = []
    regions = bytearray(_REGION.size * _REGIONS)
    vector = address_of(memoryview(regions))
    wanted = _PAGE_IS_PRESENT | _PAGE_IS_HUGE
    while start < end:
        argument = bytearray(
            _SCAN_ARGUMENT.pack(
                _SCAN_ARGUMENT.size, 0, start, end, 0, vector, _REGIONS, 0, 0, wanted, 0, wanted
            )
        )
        count = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, argument, True)
        for number in range(count):
            first, last, _ = _REGION.unpack_from(regions, number * _REGION.size)
            found.append((first, last))
        walked = _SCAN_ARGUMENT.unpack(argument)[4]
        if walked <= start:
            break
        start = walked
    return found
