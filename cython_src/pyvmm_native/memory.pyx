# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Guest-physical memory for device models.

A `GuestMemory` is a short table of (gpa, size, host address), sorted by gpa. Everything that
touches guest RAM from native code asks this table and nothing else. Addresses and lengths come
from the guest and may be any 64-bit number, so a range is never checked by adding to it: the
offset into the region is taken first, which cannot wrap, and the length is compared with what is
left there.

The guest may change any byte at any time, so callers copy what they need exactly once and check
the copy.

KVM's dirty log names what the guest writes and nothing of what this process changes: copies into
RAM, used rings, discards. Those are logged here when somebody asks for it. A change is noted after
it was made: noted before, it could be taken from the log and its page copied too early.
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
    #define NOTE(byte) __atomic_store_n(byte, 1, __ATOMIC_RELEASE)
    #define TAKE(byte) __atomic_exchange_n(byte, 0, __ATOMIC_ACQ_REL)
    """
    void NOTE(uint8_t *byte) noexcept nogil
    uint8_t TAKE(uint8_t *byte) noexcept nogil

cdef enum:
    PAGE_SHIFT = 12
    PAGE_BYTES = 4096
    HOST_ALIGN_BYTES = 16

# Physical addresses have at most 52 bits on x86-64.
cdef uint64_t GPA_LIMIT = <uint64_t>1 << 52


class GuestAddressError(ValueError):
    def __init__(self, gpa, length):
        super().__init__(f"{length} bytes at gpa {gpa:#x} are not wholly inside guest RAM")
        self.gpa = gpa
        self.length = length


@cython.final
cdef class GuestMemory:
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
        free(self._changed)

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
        cdef Py_ssize_t i
        return tuple([(self._regions[i].gpa, self._regions[i].size_bytes)
                      for i in range(self._count)])

    @property
    def page_ranges(self):
        return tuple([(gpa // PAGE_BYTES, size // PAGE_BYTES) for gpa, size in self.regions])

    def read(self, gpa, length):
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
        # The table stays when logging ends: a copy without the GIL may be noting in it.
        if self._changed == NULL and on:
            self._changed = <uint8_t *>calloc(self.size_bytes >> PAGE_SHIFT, 1)
            if self._changed == NULL:
                raise MemoryError
        if on and not self._logging:
            memset(self._changed, 0, self.size_bytes >> PAGE_SHIFT)
        self._logging = on

    def take_dirty_pages(self):
        cdef uint64_t pages, page
        cdef uint8_t *changed = self._changed
        cdef uint8_t *bits
        cdef bytes bitmap
        cdef Py_ssize_t i
        if not self._logging:
            raise ValueError("changes are not being logged")
        bitmaps = []
        for i in range(self._count):
            pages = self._regions[i].size_bytes >> PAGE_SHIFT
            bitmap = PyBytes_FromStringAndSize(NULL, (pages + 7) // 8)
            bits = <uint8_t *>PyBytes_AS_STRING(bitmap)
            memset(bits, 0, (pages + 7) // 8)
            for page in range(pages):
                if changed[page] and TAKE(&changed[page]):
                    bits[page >> 3] |= 1 << (page & 7)
            changed += pages
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
            self.note_change(gpa, got)
            gpa += got
            cursor += got
            length -= got

    cdef void note_change(self, uint64_t gpa, uint64_t length) noexcept nogil:
        cdef uint8_t *changed = self._changed
        cdef uint64_t offset, page, end
        cdef Py_ssize_t i
        if not self._logging or not length:
            return
        for i in range(self._count):
            offset = gpa - self._regions[i].gpa
            if offset < self._regions[i].size_bytes:
                end = min(offset + length, self._regions[i].size_bytes)
                for page in range(offset >> PAGE_SHIFT, (end + PAGE_BYTES - 1) >> PAGE_SHIFT):
                    NOTE(&changed[page])
                return
            changed += self._regions[i].size_bytes >> PAGE_SHIFT
