# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=True, embedsignature.format=clinic
"""Inspecting the pages of guest RAM: which are backed, which hold data, checksums.

/proc/self/pagemap shows which pages the host does not back: bits 63 (present) and 62 (swapped out)
of a page's entry are clear (Documentation/admin-guide/mm/pagemap.rst). mincore(2) reports pages in
swap as absent, and reading guest RAM instead would cost a page fault for each page.

CRC-32C (Castagnoli) is the checksum of page blocks and records because x86 has an instruction for
it since SSE4.2. Where that is missing, or slower because the processor is emulated (QEMU's TCG
computes it bit by bit), eight tables of 256 entries are used: byte n of a word is looked up in the
table of its contribution n bytes further on. The faster of the two is chosen once, by measuring.
"""

import os

from cpython.buffer cimport Py_buffer, PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EINTR, EIO, errno
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
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
    #include <string.h>
    #include <time.h>

    #define CASTAGNOLI_REVERSED 0x82F63B78u

    static uint32_t crc32c_table[8][256];
    static int crc32c_in_hardware;

    static void crc32c_fill_tables(void)
    {
        for (uint32_t byte = 0; byte < 256; byte++) {
            uint32_t crc = byte;
            for (int bit = 0; bit < 8; bit++)
                crc = crc >> 1 ^ (crc & 1 ? CASTAGNOLI_REVERSED : 0);
            crc32c_table[0][byte] = crc;
        }
        for (int n = 1; n < 8; n++)
            for (uint32_t byte = 0; byte < 256; byte++) {
                uint32_t crc = crc32c_table[n - 1][byte];
                crc32c_table[n][byte] = crc >> 8 ^ crc32c_table[0][crc & 0xFF];
            }
    }

    static uint32_t crc32c_by_table(uint32_t crc, const uint8_t *data, size_t length)
    {
        const uint32_t (*table)[256] = crc32c_table;
        uint64_t word;
        for (; length >= sizeof(word); length -= sizeof(word), data += sizeof(word)) {
            memcpy(&word, data, sizeof(word));
            word ^= crc;
            crc = table[7][word & 0xFF] ^ table[6][word >> 8 & 0xFF] ^
                  table[5][word >> 16 & 0xFF] ^ table[4][word >> 24 & 0xFF] ^
                  table[3][word >> 32 & 0xFF] ^ table[2][word >> 40 & 0xFF] ^
                  table[1][word >> 48 & 0xFF] ^ table[0][word >> 56];
        }
        while (length--)
            crc = crc >> 8 ^ table[0][(crc ^ *data++) & 0xFF];
        return crc;
    }

    __attribute__((target("sse4.2")))
    static uint32_t crc32c_by_instruction(uint32_t crc, const uint8_t *data, size_t length)
    {
        uint64_t word, wide = crc;
        for (; length >= sizeof(word); length -= sizeof(word), data += sizeof(word)) {
            memcpy(&word, data, sizeof(word));
            wide = __builtin_ia32_crc32di(wide, word);
        }
        crc = (uint32_t)wide;
        while (length--)
            crc = __builtin_ia32_crc32qi(crc, *data++);
        return crc;
    }

    static double crc32c_seconds(uint32_t (*by)(uint32_t, const uint8_t *, size_t))
    {
        static const uint8_t data[4096];
        volatile uint32_t crc;
        struct timespec begin, end;
        double least = 1, took;
        for (int attempt = 0; attempt < 3; attempt++) {
            clock_gettime(CLOCK_MONOTONIC, &begin);
            crc = by(0, data, sizeof(data));
            clock_gettime(CLOCK_MONOTONIC, &end);
            took = (end.tv_sec - begin.tv_sec) + (end.tv_nsec - begin.tv_nsec) / 1e9;
            least = took < least ? took : least;
        }
        (void)crc;
        return least;
    }

    static void crc32c_prepare(void)
    {
        crc32c_fill_tables();
        crc32c_in_hardware = __builtin_cpu_supports("sse4.2") &&
            crc32c_seconds(crc32c_by_instruction) < crc32c_seconds(crc32c_by_table);
    }

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
    int crc32c_in_hardware
    void crc32c_prepare()
    uint32_t crc32c_by_table(uint32_t crc, const uint8_t *data, size_t length)
    uint32_t crc32c_by_instruction(uint32_t crc, const uint8_t *data, size_t length)
    bint is_zero_page(const uint8_t *page)

cdef enum:
    ENTRIES = 512          # of pagemap, read at once: those of 2 MiB
    ENTRY_BYTES = 8

cdef uint64_t BACKED = <uint64_t>3 << 62    # present, or in swap

crc32c_prepare()


cdef uint32_t crc_of(uint32_t crc, const uint8_t *data, size_t length) noexcept nogil:
    if crc32c_in_hardware:
        return ~crc32c_by_instruction(~crc, data, length)
    return ~crc32c_by_table(~crc, data, length)


def crc32c(data, uint32_t crc=0, *, bint by_table=False):
    """Return the CRC-32C (polynomial 0x1EDC6F41, RFC 3720) of `data`, computed without the GIL.

    `crc` is the checksum of the preceding bytes, for data in pieces. `by_table` avoids
    the processor's instruction, for tests.
    """
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if by_table:
            return ~crc32c_by_table(~crc, <const uint8_t *>view.buf, view.len) & <uint32_t>-1
        with nogil:
            crc = crc_of(crc, <const uint8_t *>view.buf, view.len)
        return crc
    finally:
        PyBuffer_Release(&view)


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
