# SPDX-License-Identifier: Apache-2.0
"""Guest RAM as pyvmm makes it, touched, so that giving it back frees memory.

A benchmark discards the same pages again and again. Between two runs `touch` has the kernel put
memory behind them once more (MADV_POPULATE_WRITE); after each, `assert_gone` has it say of every
page whether there is memory behind it (mincore(2)). Pages are of 4 KiB or huge; that huge ones are
huge is seen in /proc/self/smaps_rollup. Once memory is touched, khugepaged is kept from it: it
would fill holes to make huge pages of what surrounds them.
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
from pyvmm.memory.ram import HUGE_PAGE_BYTES, Ram
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns

MADV_POPULATE_WRITE = 23  # <asm-generic/mman-common.h>, Linux 5.14
MADV_COLLAPSE = 25  # Linux 6.1
PR_SET_THP_DISABLE = 41  # <linux/prctl.h>
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PART_BYTES = 64 << 20
HUGE_PAGE_PAGES = HUGE_PAGE_BYTES // PAGE_BYTES

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


def have_huge_pages() -> bool:
    """Whether this machine makes huge pages where they are asked for."""
    return THP.exists() and "[never]" not in THP.read_text()


class Given:
    """Pages that a benchmark gives back, and what is seen of that."""

    def __init__(self, ram: TouchedRam, pages: PageRuns) -> None:
        self.huge_pages = _huge_pages_of(pages).intersect(ram.pages)
        """Every huge page in which one of them lies."""
        self.present = _presence(ram.pages, pages)
        """What `TouchedRam.presence` is once these are gone and nothing else."""


class TouchedRam(Ram):
    """`size_bytes` of RAM with memory behind all of it, in pages of 4 KiB until told otherwise."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.use_huge_pages(False)

    def use_huge_pages(self, huge: bool) -> None:
        """Have all of RAM in huge pages, or all of it in small ones; what it held is lost."""
        self.close()
        self._huge = huge
        self._advise(self.pages, mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
        self._populate()

    def touch(self, given: Given) -> None:
        """Put memory behind all pages again after those of `given` were discarded."""
        if self._huge:
            # A huge page with holes becomes one again only after the rest of it is gone.
            self.discard(given.huge_pages)
        self._populate()

    def assert_gone(self, given: Given) -> None:
        """That there is no memory behind what was given back, and memory behind all other pages."""
        assert self.presence() == given.present, "what is gone is not what was given back"

    def presence(self) -> bytes:
        """For each page of RAM 1 if there is memory behind it, else 0 (mincore(2))."""
        parts = []
        for start, length in self.host_ranges(self.pages):
            part = ctypes.create_string_buffer(length // PAGE_BYTES)
            _check(_libc.mincore(start, length, part))
            parts.append(part.raw)
        return b"".join(parts)

    def ranges(self, pages: PageRuns) -> Ranges:
        """`pages`, as the kernel is told of them."""
        host = [Range(*each) for each in self.host_ranges(pages)]
        return (Range * len(host))(*host)

    def host_ranges(self, pages: PageRuns) -> Iterator[tuple[int, int]]:
        """(address, bytes) of each run in this process; `pages` are RAM throughout."""
        for gpa, area in self._maps:
            offset = address_of(area) - gpa
            region = PageRuns([(gpa // PAGE_BYTES, len(area) // PAGE_BYTES)])
            for start, count in pages.intersect(region):
                yield start * PAGE_BYTES + offset, count * PAGE_BYTES

    def _advise(self, pages: PageRuns, advice: int) -> None:
        for start, length in self.host_ranges(pages):
            _check(_libc.madvise(start, length, advice))

    def _populate(self) -> None:
        _check(_libc.prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0))
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for _ in threads.map(_populate, *zip(*self._parts(), strict=True)):
                pass
        self._make_huge()
        _check(_libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0))

    def _parts(self) -> Iterator[tuple[int, int]]:
        """(address, bytes) of pieces of RAM that processors can work at side by side."""
        for start, length in self.host_ranges(self.pages):
            for at in range(0, length, PART_BYTES):
                yield start + at, min(PART_BYTES, length - at)

    def _make_huge(self) -> None:
        """A table of small pages that was left empty keeps a huge page away; collapse it."""
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
    """How much of this process's memory is in huge pages."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("AnonHugePages:"):
            return int(line.split()[1]) * 1024
    return 0


def _populate(start: int, length: int) -> None:
    _check(_libc.madvise(start, length, MADV_POPULATE_WRITE))


def _check(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
