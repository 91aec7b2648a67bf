# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=True, embedsignature.format=clinic
"""Inspecting the pages of guest RAM: which are backed, which hold data.

/proc/self/pagemap shows which pages the host does not back: bits 63 (present) and 62 (swapped out)
of a page's entry are clear (Documentation/admin-guide/mm/pagemap.rst). mincore(2) reports pages in
swap as absent, and reading guest RAM instead would cost a page fault for each page.
"""

import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EINTR, EIO, errno
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t, uintptr_t
from libc.string cimport memset
from posix.types cimport off_t

from pyvmm_native.memory cimport PAGE_SHIFT, GuestMemory
from pyvmm_native.run_list cimport RunList, add_run
from pyvmm_native.runs cimport PageRuns

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *buffer, size_t count, off_t offset)

cdef extern from * nogil:
    """
    #include <stdint.h>

    /* Return whether a page, aligned to 8 bytes, holds only zeros. */
    static int is_zero_page(const uint8_t *page)
    {
        const uint64_t *word = (const uint64_t *)page, *end = (const uint64_t *)(page + 4096);
        for (; word < end; word += 8)
            if (word[0] | word[1] | word[2] | word[3] | word[4] | word[5] | word[6] | word[7])
                return 0;
        return 1;
    }
    """
    bint is_zero_page(const uint8_t *page)
    void prefetch "__builtin_prefetch"(const void *address)

cdef enum:
    # Most pages are known by their first line: without this each would be waited for in turn.
    PREFETCHED_BYTES = 16 * 4096
    ENTRIES = 512          # of pagemap, read at once: those of 2 MiB
    ENTRY_BYTES = 8

cdef uint64_t BACKED = <uint64_t>3 << 62    # present, or in swap


def touched(GuestMemory memory not None, PageRuns pages not None):
    """Return those of `pages` that the host backs with memory or swap; the others read as zeros.

    For pages of private anonymous memory only. ValueError when one is not inside RAM, OSError when
    /proc/self/pagemap cannot be read. Releases the GIL.
    """
    check_inside(memory, pages)
    cdef PageRuns found = PageRuns.__new__(PageRuns)
    cdef int error, pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with nogil:
            error = find_touched(&found.list, memory, pages, pagemap)
    finally:
        os.close(pagemap)
    if error > 0:
        raise OSError(error, os.strerror(error), "/proc/self/pagemap")
    return found._finish(error == 0)


def nonzero(GuestMemory memory not None, PageRuns pages not None):
    """Return those of `pages` that hold a byte other than 0. Releases the GIL.

    ValueError when one is not inside RAM. If the guest is running, its concurrent writes may or may
    not be seen.
    """
    check_inside(memory, pages)
    cdef PageRuns found = PageRuns.__new__(PageRuns)
    cdef bint complete
    with nogil:
        complete = find_nonzero(&found.list, memory, pages)
    return found._finish(complete)


def bitmap(PageRuns pages not None, uint64_t start_pfn, uint64_t count):
    """Return the bitmap of `count` frames from `start_pfn` on, the inverse of
    `PageRuns.from_bitmap`.

    `count` is a multiple of 8, and both are below 2**52; ValueError otherwise.
    """
    if start_pfn >= <uint64_t>1 << 52 or count >= <uint64_t>1 << 52 or count % 8:
        raise ValueError(f"no bitmap of {count} pages from {start_pfn:#x} on")
    cdef bytes bits = PyBytes_FromStringAndSize(NULL, count // 8)
    cdef uint8_t *target = <uint8_t *>PyBytes_AS_STRING(bits)
    with nogil:
        memset(target, 0, count // 8)
        set_bits(target, pages, start_pfn, start_pfn + count)
    return bits


cdef check_inside(GuestMemory memory, PageRuns pages):
    cdef size_t i
    for i in range(pages.list.count):
        run = &pages.list.items[i]
        if run.end > <uint64_t>1 << 40 or not memory.covers(
            run.start << PAGE_SHIFT, (run.end - run.start) << PAGE_SHIFT
        ):
            raise ValueError(f"{run.end - run.start} page frames from {run.start:#x} on "
                             "are not wholly inside guest RAM")


cdef int find_touched(
    RunList *found, GuestMemory memory, PageRuns pages, int pagemap
) noexcept nogil:
    """Return 0, an errno, or -1 when there is no memory for the result."""
    cdef uint64_t entries[ENTRIES]
    cdef uint64_t pfn, got, wanted
    cdef uintptr_t hva
    cdef ssize_t size
    cdef size_t i, j
    for i in range(pages.list.count):
        pfn = pages.list.items[i].start
        while pfn < pages.list.items[i].end:
            wanted = min(pages.list.items[i].end - pfn, <uint64_t>ENTRIES)
            hva = <uintptr_t>memory.span(pfn << PAGE_SHIFT, wanted << PAGE_SHIFT, &got)
            got >>= PAGE_SHIFT
            size = pread(pagemap, entries, got * ENTRY_BYTES, (hva >> PAGE_SHIFT) * ENTRY_BYTES)
            if size < 0 and errno == EINTR:
                continue
            if size < ENTRY_BYTES:
                return errno if size < 0 else EIO
            got = size // ENTRY_BYTES
            for j in range(got):
                if entries[j] & BACKED and not add_run(found, pfn + j, pfn + j + 1):
                    return -1
            pfn += got
    return 0


cdef bint find_nonzero(RunList *found, GuestMemory memory, PageRuns pages) noexcept nogil:
    cdef uint64_t pfn, end, left, got
    cdef const uint8_t *page
    cdef size_t i
    for i in range(pages.list.count):
        pfn = pages.list.items[i].start
        end = pages.list.items[i].end
        while pfn < end:
            page = memory.span(pfn << PAGE_SHIFT, (end - pfn) << PAGE_SHIFT, &got)
            left = got >> PAGE_SHIFT
            while left:
                prefetch(page + PREFETCHED_BYTES)
                if not is_zero_page(page) and not add_run(found, pfn, pfn + 1):
                    return False
                pfn += 1
                left -= 1
                page += 1 << PAGE_SHIFT
    return True


cdef void set_bits(uint8_t *bits, PageRuns pages, uint64_t start, uint64_t end) noexcept nogil:
    cdef size_t i
    cdef uint64_t pfn, stop
    for i in range(pages.list.count):
        pfn = max(pages.list.items[i].start, start)
        stop = min(pages.list.items[i].end, end)
        while pfn < stop:
            if pfn - start & 7 == 0 and stop - pfn >= 8:
                bits[(pfn - start) >> 3] = 0xFF
                pfn += 8
            else:
                bits[(pfn - start) >> 3] |= 1 << (pfn - start & 7)
                pfn += 1
