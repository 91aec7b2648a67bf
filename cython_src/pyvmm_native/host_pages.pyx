# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=True, embedsignature.format=clinic
"""Host pages that are larger than the balloon's pages of 4 KiB.

The host can free such a page only as a whole, but the guest may put its parts in the balloon in
many requests. A `HostPageRecord` has a bit for each 4 KiB page of RAM, set while the page is in the
balloon, and counts the bits of each host page: one that has become complete can be freed, and one
that is no longer complete is in use again. For 16 GiB of RAM the record takes 512 KiB, and a
request costs time in proportion to its own size.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from pyvmm_native.run_list cimport RunList, add_run, count_ones
from pyvmm_native.runs cimport PageRuns

cdef enum:
    WORD_BITS = 64
    # A huge page of 1 GiB, the largest page of x86-64.
    MAX_HOST_PAGE_PAGES = 1 << 18

# Page frames from `start` up to `end` are RAM. Their host pages, whole or not, are numbered in
# order through all parts; `first_unit` is the first of this part and `base` its first page frame.
cdef struct Part:
    uint64_t start
    uint64_t end
    uint64_t base
    uint64_t first_unit


cdef class HostPageRecord:
    """The 4 KiB pages of `ram` that are in the balloon, by host page.

    A host page has `pages_per_host_page` pages of 4 KiB, 1 to 262,144; ValueError for other
    numbers. Nothing is in the balloon at first. `pages` is the number of pages in the balloon, and
    `complete_pages` those of them that form complete host pages. Not safe for use by several
    threads at once.
    """

    cdef readonly uint64_t pages
    cdef readonly uint64_t complete_pages
    cdef uint64_t unit_pages
    cdef uint64_t units
    cdef Part *parts
    cdef size_t part_count
    cdef uint64_t *bits
    cdef uint32_t *counts

    def __cinit__(self, PageRuns ram not None, pages_per_host_page):
        cdef size_t i
        cdef Part *part
        if not 1 <= pages_per_host_page <= MAX_HOST_PAGE_PAGES:
            raise ValueError(f"a host page of {pages_per_host_page} pages of 4 KiB")
        self.unit_pages = pages_per_host_page
        self.part_count = ram.list.count
        self.parts = <Part *>calloc(max(self.part_count, <size_t>1), sizeof(Part))
        if self.parts == NULL:
            raise MemoryError
        for i in range(self.part_count):
            part = &self.parts[i]
            part.start, part.end = ram.list.items[i].start, ram.list.items[i].end
            part.base = part.start // self.unit_pages * self.unit_pages
            part.first_unit = self.units
            self.units += (part.end - part.base + self.unit_pages - 1) // self.unit_pages
        self.bits = <uint64_t *>calloc(self._words(), sizeof(uint64_t))
        self.counts = <uint32_t *>calloc(max(self.units, <uint64_t>1), sizeof(uint32_t))
        if self.bits == NULL or self.counts == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.parts)
        free(self.bits)
        free(self.counts)

    def add(self, PageRuns runs not None):
        """Note that `runs` enter the balloon; return the pages of host pages now complete.

        Pages that are in it already change nothing. ValueError, with nothing noted, when a page is
        not RAM.
        """
        return self._change(runs, True)

    def remove(self, PageRuns runs not None):
        """Note that `runs` leave the balloon; return the pages of host pages no longer complete.

        Pages that are not in it change nothing. ValueError, with nothing noted, when a page is not
        RAM.
        """
        return self._change(runs, False)

    def bitmaps(self):
        """Return a bitmap of the pages in the balloon for each part of RAM: (first frame, bits).

        Bit 0 of a bitmap is its first frame.
        """
        cdef size_t i
        cdef uint64_t bit, length
        found = []
        for i in range(self.part_count):
            bit = self.parts[i].first_unit * self.unit_pages
            if bit % 8:  # a part of RAM that is no multiple of 8 pages
                raise ValueError("parts of RAM are multiples of 8 pages")
            length = (self.parts[i].end - self.parts[i].base + 7) // 8
            found.append((self.parts[i].base, (<char *>self.bits)[bit // 8:bit // 8 + length]))
        return found

    def clear(self):
        """Note that the balloon is empty."""
        memset(self.bits, 0, self._words() * sizeof(uint64_t))
        memset(self.counts, 0, self.units * sizeof(uint32_t))
        self.pages = self.complete_pages = 0

    cdef uint64_t _words(self) noexcept nogil:
        return self.units * self.unit_pages // WORD_BITS + 1

    cdef PageRuns _change(self, PageRuns runs, bint inside):
        cdef PageRuns changed = PageRuns.__new__(PageRuns)
        cdef size_t i
        cdef bint complete = True
        for i in range(runs.list.count):
            if self._part_of(runs.list.items[i].start, runs.list.items[i].end) == NULL:
                raise ValueError(f"the pages from {runs.list.items[i].start:#x} on are not RAM")
        with nogil:
            for i in range(runs.list.count):
                complete = complete and self._change_run(
                    &changed.list, runs.list.items[i].start, runs.list.items[i].end, inside
                )
        return changed._finish(complete)

    cdef const Part *_part_of(self, uint64_t start, uint64_t end) noexcept nogil:
        """Return the part of RAM that has all the page frames, or NULL."""
        cdef size_t i
        for i in range(self.part_count):
            if self.parts[i].start <= start and end <= self.parts[i].end:
                return &self.parts[i]
        return NULL

    cdef bint _change_run(
        self, RunList *changed, uint64_t start, uint64_t end, bint inside
    ) noexcept nogil:
        """Set or clear the bits of a run; false when there is no memory for `changed`."""
        cdef const Part *part = self._part_of(start, end)
        cdef uint64_t at = start - part.base, stop = end - part.base
        cdef uint64_t unit, unit_end, bit0 = part.first_unit * self.unit_pages
        cdef uint32_t flipped
        cdef bint whole
        while at < stop:
            unit = at // self.unit_pages
            unit_end = min(stop, (unit + 1) * self.unit_pages)
            flipped = flip(self.bits, bit0 + at, bit0 + unit_end, inside)
            whole = self._count(part.first_unit + unit, flipped, inside)
            if whole and flipped and not add_run(
                changed, part.base + unit * self.unit_pages,
                part.base + (unit + 1) * self.unit_pages,
            ):
                return False
            at = unit_end
        return True

    cdef bint _count(self, uint64_t unit, uint32_t flipped, bint inside) noexcept nogil:
        """Return whether the host page is complete after pages came in, or before they left."""
        cdef bint whole
        if inside:
            self.counts[unit] += flipped
            self.pages += flipped
            whole = self.counts[unit] == self.unit_pages
            if whole and flipped:
                self.complete_pages += self.unit_pages
        else:
            whole = self.counts[unit] == self.unit_pages
            self.counts[unit] -= flipped
            self.pages -= flipped
            if whole and flipped:
                self.complete_pages -= self.unit_pages
        return whole


cdef uint32_t flip(uint64_t *bits, uint64_t at, uint64_t end, bint inside) noexcept nogil:
    """Set or clear the bits from `at` to `end`; return how many had another value."""
    cdef uint64_t mask, before, word, width
    cdef uint32_t flipped = 0
    while at < end:
        word = at // WORD_BITS
        width = min(end - at, WORD_BITS - at % WORD_BITS)
        mask = (~<uint64_t>0 >> (WORD_BITS - width)) << at % WORD_BITS
        before = bits[word]
        bits[word] = before | mask if inside else before & ~mask
        flipped += count_ones(before ^ bits[word])
        at += width
    return flipped
