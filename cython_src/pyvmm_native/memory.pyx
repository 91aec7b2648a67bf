# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=True, embedsignature.format=clinic
"""Guest-physical memory for device models: gpa ranges over host buffers.

A `GuestMemory` is a short table of (gpa, size, host address), sorted by gpa. All native code that
touches guest RAM uses this table and nothing else. Addresses and lengths come from the guest and
may be any 64-bit number, so a range is never checked by adding to it: the offset into the region
is taken first, which cannot wrap, and the length is compared with what is left there.

The guest may change any byte at any time, so callers copy what they need exactly once and check
the copy.

KVM's dirty log records what the guest writes and nothing that this process changes: copies into
RAM, used rings, discards. Those are logged here on request. A page is marked after
it was changed: marked earlier, it could be taken from the log and copied too early.

The log, a byte per page, is allocated when logging first starts, and copies without the GIL look
at it at any moment. `_dirty_logging` is therefore stored with release order after the log exists,
and loaded with acquire order before the log is used; the log is kept until the object ends. Its
bytes are only accessed atomically: a copy that began before logging stopped may still mark its
pages when logging starts again.
"""

cimport cython
from cpython.buffer cimport (
    Py_buffer, PyBUF_SIMPLE, PyBuffer_IsContiguous, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromObject, PyMemoryView_GET_BUFFER
from libc.stdint cimport uint8_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

cdef extern from *:
    """
    #define load_relaxed(byte) __atomic_load_n(byte, __ATOMIC_RELAXED)
    #define load_acquire(flag) __atomic_load_n(flag, __ATOMIC_ACQUIRE)
    #define store_release(flag, value) __atomic_store_n(flag, value, __ATOMIC_RELEASE)
    #define test_and_clear(byte) __atomic_exchange_n(byte, 0, __ATOMIC_ACQ_REL)
    """
    bint load_acquire(bint *flag) noexcept nogil
    void store_release "store_release"(bint *flag, bint value) noexcept nogil
    uint8_t load_byte "load_relaxed"(uint8_t *byte) noexcept nogil
    void mark_byte "store_release"(uint8_t *byte, uint8_t value) noexcept nogil
    uint8_t test_and_clear(uint8_t *byte) noexcept nogil

cdef enum:
    HOST_ALIGN_BYTES = 16

# Physical addresses have at most 52 bits on x86-64.
cdef uint64_t GPA_LIMIT = <uint64_t>1 << 52


class GuestAddressError(ValueError):
    """An address range that is not wholly inside guest RAM.

    `gpa` is its guest-physical start and `length` its size in bytes.
    """

    def __init__(self, gpa, length):
        super().__init__(f"{length} bytes at gpa {gpa:#x} are not wholly inside guest RAM")
        self.gpa = gpa
        self.length = length


@cython.final
cdef class GuestMemory:
    """Guest-physical RAM as device models see it: disjoint regions of host memory, sorted by gpa.

    `regions` are (gpa, buffer) pairs in any order. A buffer is writable and contiguous, such as an
    `mmap` or a `bytearray`; its host address is a multiple of 16, its gpa and its size are
    multiples of 4096 and its end is below 2**52. ValueError when it is not, or when regions
    overlap; TypeError or BufferError for an object without such a buffer.

    The buffers stay exported for the life of this object: meanwhile an `mmap` cannot be closed and
    a `bytearray` cannot be resized (both raise BufferError). Every method may be called while guest
    code changes the memory. Copies of 256 KiB and more release the GIL.

    `size_bytes` is the size of all regions together.
    """

    def __cinit__(self, regions):
        ordered = sorted(regions, key=lambda region: region[0])
        self._exports = []
        self._regions = <Region *>calloc(max(len(ordered), 1), sizeof(Region))
        if self._regions == NULL:
            raise MemoryError
        for gpa, buffer in ordered:
            self._append(gpa, buffer)

    def __dealloc__(self):
        free(self._regions)
        free(self._dirty)

    cdef int _append(self, object gpa, object buffer) except -1:
        cdef Region *region = &self._regions[self._count]
        export = PyMemoryView_FromObject(buffer)
        cdef Py_buffer *view = PyMemoryView_GET_BUFFER(export)
        if view.readonly or not PyBuffer_IsContiguous(view, c'C'):
            raise ValueError(f"the region at gpa {gpa:#x} is not a writable contiguous buffer")
        if gpa < 0 or gpa % PAGE_BYTES or view.len % PAGE_BYTES or not view.len:
            raise ValueError(f"the region of {view.len} bytes at gpa {gpa:#x} is not whole pages")
        if gpa + view.len > GPA_LIMIT:
            raise ValueError(f"the region at gpa {gpa:#x} ends beyond 52 bits")
        # Ring fields are accessed atomically, which takes naturally aligned host addresses.
        if <uintptr_t>view.buf % HOST_ALIGN_BYTES:
            raise ValueError(f"the buffer at gpa {gpa:#x} is not aligned to 16 bytes")
        if self._count and gpa < (region - 1).gpa + (region - 1).size_bytes:
            raise ValueError(f"the region at gpa {gpa:#x} overlaps the one below it")
        region.gpa = gpa
        region.size_bytes = view.len
        region.hva = <uint8_t *>view.buf
        self._exports.append(export)
        self._count += 1
        self.size_bytes += region.size_bytes
        return 0

    @property
    def regions(self):
        """(gpa, size in bytes) of every region, ascending."""
        cdef Py_ssize_t i
        return tuple([(self._regions[i].gpa, self._regions[i].size_bytes)
                      for i in range(self._count)])

    @property
    def page_ranges(self):
        """(start_pfn, count) of every region in 4 KiB page frames, ascending."""
        return tuple([(gpa // PAGE_BYTES, size // PAGE_BYTES) for gpa, size in self.regions])

    def read(self, gpa, length):
        """Return a copy of `length` bytes of guest RAM at `gpa`; each byte is read exactly once.

        The range may cross from one region to the next where they touch in guest-physical address
        space. GuestAddressError when any byte of it is not RAM (an empty range always is);
        ValueError for a negative length.
        """
        cdef uint64_t start, size
        start, size = self._checked(gpa, length)
        cdef bytes data = PyBytes_FromStringAndSize(NULL, size)
        cdef char *target = PyBytes_AS_STRING(data)
        if size < GIL_FREE_BYTES:
            self.copy_out(start, target, size)
        else:
            with nogil:
                self.copy_out(start, target, size)
        return data

    def write(self, gpa, data):
        """Copy the bytes of `data` into guest RAM at `gpa`.

        GuestAddressError when any byte of the range is not RAM; nothing is written then.
        """
        cdef uint64_t start, size
        cdef Py_buffer source
        PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)
        try:
            start, size = self._checked(gpa, source.len)
            if size < GIL_FREE_BYTES:
                self.copy_in(start, source.buf, size)
            else:
                with nogil:
                    self.copy_in(start, source.buf, size)
        finally:
            PyBuffer_Release(&source)

    def log_dirty_pages(self, bint on):
        """Start, with an empty log, or stop logging the pages that this process dirties.

        Logged are writes and discards through this object and through objects made of it, such as
        rings; not what the guest itself writes. Starting a log that is running changes nothing.
        Raises MemoryError when there is no memory for the log, a byte per page.
        """
        cdef uint64_t page
        if self._dirty == NULL and on:
            self._dirty = <uint8_t *>calloc(self.size_bytes >> PAGE_SHIFT, 1)
            if self._dirty == NULL:
                raise MemoryError
        if on and not self._dirty_logging:
            for page in range(self.size_bytes >> PAGE_SHIFT):
                if load_byte(&self._dirty[page]):
                    test_and_clear(&self._dirty[page])
        store_release(&self._dirty_logging, on)

    def take_dirty_pages(self):
        """Return and clear the log: (start_pfn, bitmap) of each region, for `PageRuns.from_bitmap`.

        A page that is being written during the call may be in the next result only. ValueError when
        dirty pages are not being logged.
        """
        cdef uint64_t pages, page
        cdef uint8_t *dirty = self._dirty
        cdef uint8_t *bits
        cdef bytes bitmap
        cdef Py_ssize_t i
        if not self._dirty_logging:
            raise ValueError("dirty pages are not being logged")
        bitmaps = []
        for i in range(self._count):
            pages = self._regions[i].size_bytes >> PAGE_SHIFT
            bitmap = PyBytes_FromStringAndSize(NULL, (pages + 7) // 8)
            bits = <uint8_t *>PyBytes_AS_STRING(bitmap)
            memset(bits, 0, (pages + 7) // 8)
            for page in range(pages):
                if load_byte(&dirty[page]) and test_and_clear(&dirty[page]):
                    bits[page >> 3] |= 1 << (page & 7)
            dirty += pages
            bitmaps.append((self._regions[i].gpa >> PAGE_SHIFT, bitmap))
        return bitmaps

    cdef (uint64_t, uint64_t) _checked(self, object gpa, object length) except *:
        if length < 0:
            raise ValueError(f"a length of {length} bytes")
        if not 0 <= gpa < 1 << 64 or length >= 1 << 64 or not self.covers(gpa, length):
            raise GuestAddressError(gpa, length)
        return gpa, length

    cdef void *translate(self, uint64_t gpa, uint64_t length) noexcept nogil:
        cdef uint64_t got
        cdef uint8_t *hva = self.span(gpa, length, &got)
        return hva if length and got == length else NULL

    cdef uint8_t *span(self, uint64_t gpa, uint64_t length, uint64_t *got) noexcept nogil:
        cdef Py_ssize_t i
        cdef uint64_t offset, left
        for i in range(self._count):
            # Below the region the difference wraps to a number larger than any region.
            offset = gpa - self._regions[i].gpa
            if offset < self._regions[i].size_bytes:
                left = self._regions[i].size_bytes - offset
                got[0] = length if length < left else left
                return self._regions[i].hva + offset
        got[0] = 0
        return NULL

    cdef bint covers(self, uint64_t gpa, uint64_t length) noexcept nogil:
        cdef uint64_t got
        while length:
            if self.span(gpa, length, &got) == NULL:
                return False
            gpa += got
            length -= got
        return True

    cdef void copy_out(self, uint64_t gpa, void *target, uint64_t length) noexcept nogil:
        cdef uint64_t got
        cdef uint8_t *cursor = <uint8_t *>target
        cdef uint8_t *hva
        while length:
            hva = self.span(gpa, length, &got)
            if hva == NULL:
                return
            memcpy(cursor, hva, got)
            gpa += got
            cursor += got
            length -= got

    cdef void copy_in(self, uint64_t gpa, const void *source, uint64_t length) noexcept nogil:
        cdef uint64_t got
        cdef const uint8_t *cursor = <const uint8_t *>source
        cdef uint8_t *hva
        while length:
            hva = self.span(gpa, length, &got)
            if hva == NULL:
                return
            memcpy(hva, cursor, got)
            self.mark_dirty(gpa, got)
            gpa += got
            cursor += got
            length -= got

    cdef bint logs_dirty_pages(self) noexcept nogil:
        return load_acquire(&self._dirty_logging)

    cdef void mark_dirty(self, uint64_t gpa, uint64_t length) noexcept nogil:
        cdef uint8_t *dirty
        cdef uint64_t offset, page, end
        cdef Py_ssize_t i
        if not length or not self.logs_dirty_pages():
            return
        dirty = self._dirty
        for i in range(self._count):
            offset = gpa - self._regions[i].gpa
            if offset < self._regions[i].size_bytes:
                end = min(offset + length, self._regions[i].size_bytes)
                for page in range(offset >> PAGE_SHIFT, (end + PAGE_BYTES - 1) >> PAGE_SHIFT):
                    mark_byte(&dirty[page], 1)
                return
            dirty += self._regions[i].size_bytes >> PAGE_SHIFT
