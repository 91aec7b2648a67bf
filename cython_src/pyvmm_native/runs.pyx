# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=True, embedsignature.format=clinic
"""Sets of guest page frames as runs of consecutive ones.

The pages of a balloon request, those a guest reports as unused and those of a dirty log are all
sets of page frames. Guest memory is mostly allocated and freed in long chunks, so such a set is
kept as an array of (start, end) pairs, ascending and apart from each other; its memory is
proportional to the number of runs. Every operation is one linear pass over its operands that
appends to the result in ascending order, without the GIL. run_list.pxd describes how bitmaps are
decoded, record_list.pxd how 64-bit records are.
"""

from itertools import islice

cimport cython
from cpython.buffer cimport Py_buffer, PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp

from pyvmm_native.record_list cimport (
    NAMED_TWICE, NO_FAULT, NO_MEMORY, Decoder, Fault, decode_hybrid, decode_ranges, sort_and_merge,
)
from pyvmm_native.run_list cimport (
    FRAME_LIMIT, Run, RunList, add_run, append, decode_bitmap, resize,
)

cdef enum:
    SHOWN_RUNS = 8

# By `Fault` of record_list.pxd.
_FAULTS = (
    "", "", "truncated record", "page_shift is not a page size", "bmap_len is neither 0 nor 8",
    "long count below 4096 or above 2**24", "beyond any address", "a page is named twice",
)


@cython.final
cdef class PageRuns:
    """An immutable set of 4 KiB guest page frames, kept as ascending, separate runs.

    `runs` are (start_pfn, count) pairs in any order; overlapping and touching ones are merged.
    ValueError when a count is not positive or a run is not within [0, 2**52) frames.

    Iterating gives (start_pfn, count); `len` is the number of runs; `pfn in runs` looks one frame
    up in O(log runs). Two sets are equal when they hold the same frames. Sets are not hashable.

    `pages` is the number of frames in the set, `largest` the number in its longest run (0 when
    empty).
    """

    def __cinit__(self, runs=()):
        if runs is ():
            return
        cdef bint complete = True
        for start, count in sorted(runs):
            if count <= 0 or start < 0 or start + count > FRAME_LIMIT:
                raise ValueError(f"{count} page frames from {start:#x} on are not a run")
            complete = complete and add_run(&self.list, start, start + count)
        self._finish(complete)

    def __dealloc__(self):
        free(self.list.items)

    @classmethod
    def from_bitmap(cls, bitmap, start_pfn=0):
        """Return the frames whose bits are set: bit 0 of byte 0 is frame `start_pfn`.

        `bitmap` is a little-endian bit string of any length in bytes, at any alignment. It is read
        once, in memory proportional to the runs found. ValueError when it reaches beyond 2**52
        frames or `start_pfn` is negative.
        """
        cdef PageRuns result = PageRuns.__new__(PageRuns)
        cdef Py_buffer view
        cdef uint64_t first
        cdef bint complete
        PyObject_GetBuffer(bitmap, &view, PyBUF_SIMPLE)
        try:
            if not 0 <= start_pfn <= FRAME_LIMIT - 8 * view.len:
                raise ValueError(f"bitmap of {view.len} bytes from frame {start_pfn:#x} on")
            first = start_pfn
            with nogil:
                complete = decode_bitmap(&result.list, <const uint8_t *>view.buf, view.len, first)
        finally:
            PyBuffer_Release(&view)
        return result._finish(complete)

    @classmethod
    def from_hybrid_records(cls, records, distinct=False):
        """Return the frames of little-endian 64-bit records: blocks, and bitmaps of 64 pages.

        A record has `start_pfn` in bits 0 to 51, in 4 KiB frames and with any alignment,
        `page_shift`, 12 to 30, in bits 52 to 57 and `bmap_len`, 0 or 8 bytes, in the others. With
        `bmap_len` 0 it is a block of 2**page_shift bytes; with 8 the next 64 bits are a bitmap of
        pages of that size, of which bit 0 starts at `start_pfn`.

        Records may be in any order. ValueError for any other record, one that is truncated or
        reaches beyond 2**52 frames, and with `distinct` for a frame that is named twice.
        """
        return from_records(records, decode_hybrid, distinct)

    @classmethod
    def from_range_records(cls, records, distinct=False):
        """Return the frames of little-endian 64-bit records: ranges of frames.

        A record has its first frame in bits 12 to 63 and the number of frames in bits 0 to 11. If
        that is 0, the next 64 bits are the number, from 4096 (the first one that does not fit 12
        bits) to 2**24.

        Records may be in any order. ValueError for any other record, one that is truncated or
        reaches beyond 2**52 frames, and with `distinct` for a frame that is named twice.
        """
        return from_records(records, decode_ranges, distinct)

    def scaled(self, factor):
        """Return the 4 KiB frames of this set, taking its frames as `factor` times 4 KiB each.

        ValueError when `factor` is not positive or the result exceeds 2**52 frames.
        """
        cdef PageRuns result = PageRuns.__new__(PageRuns)
        cdef uint64_t times
        cdef uint64_t last = self.list.items[self.list.count - 1].end if self.list.count else 0
        cdef bint complete
        if factor < 1 or factor * last > FRAME_LIMIT:
            raise ValueError(f"frames up to {last:#x} times {factor}")
        if factor == 1 or not last:
            return self
        times = factor
        with nogil:
            complete = scale(&result.list, &self.list, times)
        return result._finish(complete)

    def whole(self, pages_per_unit):
        """Return the frames of those units of `pages_per_unit` frames that lie wholly in the set.

        Units are aligned to their size in guest-physical address space. This serves host pages
        larger than 4 KiB, which can only be discarded whole. ValueError unless `pages_per_unit` is
        positive.
        """
        cdef PageRuns result = PageRuns.__new__(PageRuns)
        cdef uint64_t unit
        cdef bint complete
        if not 1 <= pages_per_unit <= FRAME_LIMIT:
            raise ValueError(f"units of {pages_per_unit} pages")
        if pages_per_unit == 1:
            return self
        unit = pages_per_unit
        with nogil:
            complete = shrink_to_units(&result.list, &self.list, unit)
        return result._finish(complete)

    def intersect(self, PageRuns other not None):
        """Return the frames in both sets."""
        cdef PageRuns result = PageRuns.__new__(PageRuns)
        cdef bint complete
        with nogil:
            complete = intersection(&result.list, &self.list, &other.list)
        return result._finish(complete)

    def subtract(self, PageRuns other not None):
        """Return the frames in this set and not in `other`."""
        cdef PageRuns result = PageRuns.__new__(PageRuns)
        cdef bint complete
        with nogil:
            complete = difference(&result.list, &self.list, &other.list)
        return result._finish(complete)

    def union(self, PageRuns other not None):
        """Return the frames in either set."""
        cdef PageRuns result = PageRuns.__new__(PageRuns)
        cdef bint complete
        with nogil:
            complete = merge(&result.list, &self.list, &other.list)
        return result._finish(complete)

    def per_cell(self, pages_per_cell, cells):
        """Return the number of frames in each of `cells` cells of `pages_per_cell` frames, from
        frame 0 on.

        Frames beyond the last cell are not counted. ValueError unless `pages_per_cell` is positive
        and `cells` is not negative, both at most 2**52.
        """
        cdef uint64_t width
        cdef size_t count, i
        cdef uint64_t *pages
        if not (1 <= pages_per_cell <= FRAME_LIMIT and 0 <= cells <= FRAME_LIMIT):
            raise ValueError(f"{cells} cells of {pages_per_cell} pages")
        width = pages_per_cell
        count = cells
        pages = <uint64_t *>calloc(count + 1, sizeof(uint64_t))
        if pages == NULL:
            raise MemoryError
        try:
            with nogil:
                count_per_cell(pages, count, width, &self.list)
            return [pages[i] for i in range(count)]
        finally:
            free(pages)

    def __len__(self):
        return self.list.count

    def __bool__(self):
        return self.list.count != 0

    def __iter__(self):
        cdef size_t i
        for i in range(self.list.count):
            yield self.list.items[i].start, self.list.items[i].end - self.list.items[i].start

    def __contains__(self, pfn):
        cdef size_t low = 0, high = self.list.count, middle
        if not 0 <= pfn < FRAME_LIMIT:
            return False
        cdef uint64_t frame = pfn
        while low < high:
            middle = (low + high) // 2
            if self.list.items[middle].end <= frame:
                low = middle + 1
            else:
                high = middle
        return low < self.list.count and self.list.items[low].start <= frame

    def __eq__(self, other):
        if not isinstance(other, PageRuns):
            return NotImplemented
        cdef PageRuns that = other
        return self.list.count == that.list.count and (self.list.count == 0 or memcmp(
            self.list.items, that.list.items, self.list.count * sizeof(Run)) == 0)

    def __repr__(self):
        shown = [f"({start:#x}, {count})" for start, count in islice(self, SHOWN_RUNS)]
        if self.list.count > SHOWN_RUNS:
            shown.append(f"... {self.list.count} runs of {self.pages} pages")
        return f"PageRuns([{', '.join(shown)}])"

    cdef PageRuns _finish(self, bint complete):
        """Release spare capacity and sum up; `complete` is false when memory ran out."""
        cdef size_t i
        cdef uint64_t count
        if not complete:
            raise MemoryError
        if self.list.count < self.list.capacity:
            resize(&self.list, self.list.count)
        with nogil:
            for i in range(self.list.count):
                count = self.list.items[i].end - self.list.items[i].start
                self.pages += count
                self.largest = max(self.largest, count)
        return self


cdef PageRuns from_records(records, Decoder decode, bint distinct):
    cdef PageRuns result = PageRuns.__new__(PageRuns)
    cdef Py_buffer view
    cdef size_t at = 0
    cdef Fault fault
    PyObject_GetBuffer(records, &view, PyBUF_SIMPLE)
    try:
        if view.len % 8:
            raise ValueError(f"{view.len} bytes are not an array of 64-bit records")
        with nogil:
            fault = decode(&result.list, <const uint8_t *>view.buf, view.len, FRAME_LIMIT, &at)
            if fault == NO_FAULT:
                fault = sort_and_merge(&result.list, distinct)
    finally:
        PyBuffer_Release(&view)
    if fault == NAMED_TWICE:
        raise ValueError(_FAULTS[fault])
    if fault not in (NO_FAULT, NO_MEMORY):
        raise ValueError(f"{_FAULTS[fault]}, at byte {at} of the records")
    return result._finish(fault == NO_FAULT)


# As in run_list.pxd, false means that memory ran out.

cdef bint scale(RunList *out, const RunList *a, uint64_t factor) noexcept nogil:
    cdef size_t i
    for i in range(a.count):
        if not append(out, a.items[i].start * factor, a.items[i].end * factor):
            return False
    return True


cdef bint shrink_to_units(RunList *out, const RunList *a, uint64_t unit) noexcept nogil:
    cdef size_t i
    cdef uint64_t start, end
    for i in range(a.count):
        start = (a.items[i].start + unit - 1) // unit * unit
        end = a.items[i].end // unit * unit
        if start < end and not append(out, start, end):
            return False
    return True


cdef void count_per_cell(
    uint64_t *pages, size_t cells, uint64_t width, const RunList *a
) noexcept nogil:
    cdef size_t i
    cdef uint64_t start, cell, end
    for i in range(a.count):
        start = a.items[i].start
        while start < a.items[i].end:
            cell = start // width
            if cell >= cells:
                return
            end = min(a.items[i].end, (cell + 1) * width)
            pages[cell] += end - start
            start = end


cdef bint intersection(RunList *out, const RunList *a, const RunList *b) noexcept nogil:
    cdef size_t i = 0, j = 0
    cdef uint64_t start, end
    while i < a.count and j < b.count:
        start = max(a.items[i].start, b.items[j].start)
        end = min(a.items[i].end, b.items[j].end)
        if start < end and not append(out, start, end):
            return False
        if a.items[i].end == end:
            i += 1
        else:
            j += 1
    return True


cdef bint difference(RunList *out, const RunList *a, const RunList *b) noexcept nogil:
    cdef size_t i, j = 0
    cdef uint64_t cursor, end
    for i in range(a.count):
        cursor = a.items[i].start
        end = a.items[i].end
        while j < b.count and b.items[j].end <= cursor:
            j += 1
        while j < b.count and b.items[j].start < end:
            if cursor < b.items[j].start and not append(out, cursor, b.items[j].start):
                return False
            cursor = b.items[j].end
            if cursor > end:
                break
            j += 1
        if cursor < end and not append(out, cursor, end):
            return False
    return True


cdef bint merge(RunList *out, const RunList *a, const RunList *b) noexcept nogil:
    cdef size_t i = 0, j = 0
    cdef Run *item
    while i < a.count or j < b.count:
        if j == b.count or (i < a.count and a.items[i].start <= b.items[j].start):
            item = &a.items[i]
            i += 1
        else:
            item = &b.items[j]
            j += 1
        if not add_run(out, item.start, item.end):
            return False
    return True
