# SPDX-License-Identifier: Apache-2.0
"""Guest RAM as pyvmm maps it, populated, so that discarding it frees memory.

A benchmark discards the same pages repeatedly. Between two runs `touch` has the kernel populate
them again (MADV_POPULATE_WRITE); after each, `assert_discarded` checks for every page whether it is
populated (mincore(2)). Pages are of 4 KiB or huge; /proc/self/smaps_rollup shows whether huge pages
are in use. Once memory is populated, khugepaged must leave it alone: it would fill holes to
collapse their surroundings into huge pages. So it has MADV_NOHUGEPAGE then, which splits no huge
page. PR_SET_THP_DISABLE would also concern all other memory of the process, and be inherited by its
children.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.discarder import Range, Ranges
from pykvm import address_of
from pyvmm.errors import UserError
from pyvmm.memory.ram import Ram
from pyvmm.units import HUGE_PAGE_BYTES
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns

MADV_POPULATE_WRITE = 23  # <asm-generic/mman-common.h>, Linux 5.14
MADV_COLLAPSE = 25  # Linux 6.1
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PART_BYTES = 64 << 20
HUGE_PAGE_PAGES = HUGE_PAGE_BYTES // PAGE_BYTES

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


def have_huge_pages() -> bool:
    """Return whether this machine provides huge pages on request."""
    return THP.exists() and "[never]" not in THP.read_text()


class DiscardedPages:
    """Pages that a benchmark discards, and the presence of all pages expected afterwards."""

    def __init__(self, ram: TouchedRam, pages: PageRuns) -> None:
        self.huge_pages = _huge_pages_of(pages).intersect(ram.pages)
        """Every huge page that contains one of them."""
        self.present = _presence(ram.pages, pages)
        """The value of `TouchedRam.presence` once these and no others are discarded."""


class TouchedRam(Ram):
    """`size_bytes` of populated RAM, initially in pages of 4 KiB."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.use_huge_pages(False)

    def use_huge_pages(self, huge: bool) -> None:
        """Populate all of RAM with huge pages, or with small ones; its contents are lost."""
        self.close()
        self._huge = huge
        self._populate()

    def touch(self, discarded: DiscardedPages) -> None:
        """Populate all pages again after those of `discarded` were discarded."""
        if self._huge:
            # A huge page with holes becomes one again only after the rest of it is discarded.
            self.discard(discarded.huge_pages)
        self._populate()

    def assert_discarded(self, discarded: DiscardedPages) -> None:
        """Check that the discarded pages are not populated, and all others are."""
        assert self.presence() == discarded.present, "the discarded pages differ"

    def presence(self) -> bytes:
        """Return for each page of RAM 1 if it is populated, else 0 (mincore(2))."""
        parts = []
        for start, length in self.host_ranges(self.pages):
            part = ctypes.create_string_buffer(length // PAGE_BYTES)
            _check(_libc.mincore(start, length, part))
            parts.append(part.raw)
        return b"".join(parts)

    def ranges(self, pages: PageRuns) -> Ranges:
        """Return `pages` as an array of struct iovec."""
        host = [Range(*each) for each in self.host_ranges(pages)]
        return (Range * len(host))(*host)

    def host_ranges(self, pages: PageRuns) -> Iterator[tuple[int, int]]:
        """Yield (address, bytes) of each run in this process; `pages` are RAM throughout."""
        for gpa, area in self._maps:
            offset = address_of(area) - gpa
            region = PageRuns([(gpa // PAGE_BYTES, len(area) // PAGE_BYTES)])
            for start, count in pages.intersect(region):
                yield start * PAGE_BYTES + offset, count * PAGE_BYTES

    def _advise(self, pages: PageRuns, advice: int) -> None:
        for start, length in self.host_ranges(pages):
            _check(_libc.madvise(start, length, advice))

    def _populate(self) -> None:
        self._advise(self.pages, mmap.MADV_HUGEPAGE if self._huge else mmap.MADV_NOHUGEPAGE)
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for _ in threads.map(_populate, *zip(*self._parts(), strict=True)):
                pass
        self._make_huge()
        self._advise(self.pages, mmap.MADV_NOHUGEPAGE)

    def _parts(self) -> Iterator[tuple[int, int]]:
        """Yield (address, bytes) of pieces of RAM that processors can populate in parallel."""
        for start, length in self.host_ranges(self.pages):
            for at in range(0, length, PART_BYTES):
                yield start + at, min(PART_BYTES, length - at)

    def _make_huge(self) -> None:
        """Collapse RAM into huge pages, where an empty table of small pages has prevented one."""
        if self._huge and self._lacks_huge_pages():
            self._advise(self.pages, MADV_COLLAPSE)
            if self._lacks_huge_pages():
                raise UserError("the kernel has too few huge pages left")

    def _lacks_huge_pages(self) -> bool:
        return _huge_bytes() < 0.95 * self.size_bytes


def _huge_pages_of(pages: PageRuns) -> PageRuns:
    return PageRuns(
        (
            start // HUGE_PAGE_PAGES,
            -(-(start + count) // HUGE_PAGE_PAGES) - start // HUGE_PAGE_PAGES,
        )
        for start, count in pages
    ).scaled(HUGE_PAGE_PAGES)


def _presence(ram: PageRuns, gone: PageRuns) -> bytes:
    parts = []
    for first, total in ram:
        part = bytearray(b"\1" * total)
        for start, count in gone.intersect(PageRuns([(first, total)])):
            part[start - first : start - first + count] = bytes(count)
        parts.append(bytes(part))
    return b"".join(parts)


def _huge_bytes() -> int:
    """Return the bytes of this process's memory that are in huge pages."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("AnonHugePages:"):
            return int(line.split()[1]) * 1024
    return 0


def _populate(start: int, length: int) -> None:
    _check(_libc.madvise(start, length, MADV_POPULATE_WRITE))


def _check(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
