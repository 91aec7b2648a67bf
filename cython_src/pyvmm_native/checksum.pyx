# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=True, embedsignature.format=clinic
"""Checksums of page blocks and records.

Records and files have CRC-32C, for which processors have instructions: `crc32c.h` describes the
`CRC32C_IMPLEMENTATIONS` that this one has, of which the fastest is used. The pages of a migration
may have another checksum that both sides know (`CHECKSUMS`):

* `crc32c`;
* `xxh3`, XXH3 with 64 bits, without vector instructions: those make it faster on a processor, but
  several times slower in a lab, where QEMU emulates them one element at a time, and the lab is what
  XXH3 is for; the module has it if the header of the xxHash library was there when it was built;
* `none`: the sum of any bytes is 0.
"""

cimport cython
from cpython.buffer cimport Py_buffer, PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from "crc32c.h" nogil:
    ctypedef uint32_t crc32c_function(uint32_t crc, const uint8_t *data, size_t length)
    struct crc32c_implementation:
        const char *name
        crc32c_function *function
    crc32c_implementation *crc32c_implementations
    int crc32c_count
    crc32c_function *crc32c_fastest
    void crc32c_prepare()

cdef extern from * nogil:
    """
    #if __has_include(<xxhash.h>)
    #pragma GCC push_options
    #pragma GCC optimize("no-tree-vectorize")
    #define XXH_INLINE_ALL
    #define XXH_VECTOR 0 /* XXH_SCALAR */
    #include <xxhash.h>
    #define HAS_XXH3 1

    static void *xxh3_new(void) { return XXH3_createState(); }
    static void xxh3_free(void *state) { XXH3_freeState(state); }
    static void xxh3_begin(void *state) { XXH3_64bits_reset(state); }
    static void xxh3_add(void *state, const uint8_t *data, size_t length)
    {
        XXH3_64bits_update(state, data, length);
    }
    static uint64_t xxh3_value(void *state) { return XXH3_64bits_digest(state); }
    #pragma GCC pop_options
    #else
    #define HAS_XXH3 0

    static void *xxh3_new(void) { return NULL; }
    static void xxh3_free(void *state) { (void)state; }
    static void xxh3_begin(void *state) { (void)state; }
    static void xxh3_add(void *state, const uint8_t *data, size_t length)
    {
        (void)state, (void)data, (void)length;
    }
    static uint64_t xxh3_value(void *state) { (void)state; return 0; }
    #endif
    """
    bint HAS_XXH3
    void *xxh3_new()
    void xxh3_free(void *state)
    void xxh3_begin(void *state)
    void xxh3_add(void *state, const uint8_t *data, size_t length)
    uint64_t xxh3_value(void *state)

cdef enum:
    CRC32C, XXH3, NONE

_ALGORITHMS = {"crc32c": CRC32C, "none": NONE}
if HAS_XXH3:
    _ALGORITHMS["xxh3"] = XXH3

CHECKSUMS = tuple(sorted(_ALGORITHMS))
"""The names of checksums that this build knows."""

crc32c_prepare()

CRC32C_IMPLEMENTATIONS = tuple(
    [crc32c_implementations[n].name.decode() for n in range(crc32c_count)]
)


cdef uint32_t crc_of(uint32_t crc, const uint8_t *data, size_t length) noexcept nogil:
    return ~crc32c_fastest(~crc, data, length)


def crc32c(data, uint32_t crc=0):
    """Return the CRC-32C (polynomial 0x1EDC6F41, RFC 3720) of `data`, computed without the GIL.

    `crc` is the checksum of the preceding bytes, for data in pieces.
    """
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        with nogil:
            crc = crc_of(crc, <const uint8_t *>view.buf, view.len)
        return crc
    finally:
        PyBuffer_Release(&view)


def crc32c_by(str implementation, const uint8_t[::1] data not None, uint32_t crc=0):
    """Return what `crc32c` does, by one of `CRC32C_IMPLEMENTATIONS`, for tests."""
    cdef int n = CRC32C_IMPLEMENTATIONS.index(implementation)
    crc = ~crc
    if data.shape[0]:
        crc = crc32c_implementations[n].function(crc, &data[0], data.shape[0])
    return ~crc & <uint32_t>-1


@cython.final
cdef class Checksum:
    """The checksum called `name`, one of `CHECKSUMS`; ValueError for another.

    Threads: one at a time.
    """

    def __cinit__(self, str name):
        if name not in _ALGORITHMS:
            raise ValueError(f"no checksum {name!r} here")
        self.name = name
        self._algorithm = _ALGORITHMS[name]
        if self._algorithm == XXH3:
            self._xxh3 = xxh3_new()
            if self._xxh3 == NULL:
                raise MemoryError

    def __dealloc__(self):
        if self._xxh3 != NULL:
            xxh3_free(self._xxh3)

    def of(self, data):
        """Return the checksum of `data`, below 2**64, computed without the GIL."""
        cdef Py_buffer view
        cdef uint64_t result
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            with nogil:
                self.begin()
                self.add(<const uint8_t *>view.buf, view.len)
                result = self.value()
            return result
        finally:
            PyBuffer_Release(&view)

    cdef void begin(self) noexcept nogil:
        self._crc = 0
        if self._algorithm == XXH3:
            xxh3_begin(self._xxh3)

    cdef void add(self, const uint8_t *data, size_t length) noexcept nogil:
        if self._algorithm == CRC32C:
            self._crc = crc_of(self._crc, data, length)
        elif self._algorithm == XXH3:
            xxh3_add(self._xxh3, data, length)

    cdef uint64_t value(self) noexcept nogil:
        return xxh3_value(self._xxh3) if self._algorithm == XXH3 else self._crc
