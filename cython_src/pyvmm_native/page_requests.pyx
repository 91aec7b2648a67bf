# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=True, embedsignature.format=clinic
"""Requests on the balloon's inflate and deflate queues: from the ring to page runs in one call.

`devices.balloon` describes the four formats and says why they are as strict as they are;
page_messages.pxd is where they are decoded and checked. `PageRequestReader.pop` takes all that
wait: each request is walked, copied, decoded and compared with RAM, and a valid one joins the
batch. Its bytes are copied out of guest memory once, and everything is decided on the copy. A
request that is not valid ends the batch and stays in the ring. At the front it is popped as an
ordinary `Chain`, which has a copy of its own: the device decodes that one, which the driver may
have changed meanwhile, and says why it refuses it.

A batch is bounded by its buffers, bytes and runs, so no guest occupies the caller for long.
"""

cimport cython
from cpython.buffer cimport Py_buffer, PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from pyvmm_native.page_messages cimport (
    ADDRESS, BITMAP, COMMAND, EMPTY, FLAG, HYBRID, ID, NO_ARRAY, OUT_OF_MEMORY, PAGE_SIZE, RANGES,
    RECORDS, STANDARD, START, SUPPLIED, TOO_SHORT, TWICE_IN_ARRAY, VALID, Header, Why,
    decode_message,
)
from pyvmm_native.record_list cimport NAMED_TWICE, NO_FAULT, WORD_BYTES, sort_and_merge
from pyvmm_native.ring cimport SplitQueue
from pyvmm_native.run_list cimport RunList, append
from pyvmm_native.runs cimport PageRuns

from pyvmm_native.runs import _FAULTS

cdef enum:
    MAX_REQUESTS = 64
    MAX_BATCH_BYTES = 64 * 1024
    MAX_BATCH_RUNS = 4096
    # Smaller requests are decoded sooner than the GIL is released and acquired again.
    GIL_FREE_REQUEST_BYTES = 4096
    FIRST_BYTES = 4096          # room for requests, at first

# The names of the formats, which are those of the dialects.
cdef dict FORMATS = {"standard": STANDARD, "bitmap": BITMAP, "hybrid": HYBRID, "ranges": RANGES}


@cython.final
cdef class PageRequests:
    """Valid requests, popped together: their pages, and the buffers to return.

    Created only by `PageRequestReader.pop`. `runs` are the pages of all of them, `pages` is the sum
    of their numbers of pages, `readable_bytes` that of their sizes, and `count` their number.
    """

    cdef readonly PageRuns runs
    cdef readonly uint64_t pages
    cdef readonly uint64_t readable_bytes
    cdef readonly uint32_t count
    cdef SplitQueue _queue
    cdef bint _are_all          # that waited when they were popped
    cdef uint16_t[MAX_REQUESTS] _heads
    # Copies of the requests, one after the other, and where each ends.
    cdef uint8_t *_bytes
    cdef uint64_t _capacity
    cdef uint64_t[MAX_REQUESTS] _ends

    def __init__(self):
        raise TypeError("only PageRequestReader.pop creates requests")

    def __dealloc__(self):
        free(self._bytes)

    @property
    def messages(self):
        """The bytes of each request, in order, as they were copied and decoded."""
        cdef uint32_t i
        return tuple([
            PyBytes_FromStringAndSize(
                <char *>self._bytes + (self._ends[i - 1] if i else 0),
                self._ends[i] - (self._ends[i - 1] if i else 0))
            for i in range(self.count)
        ])

    def push(self):
        """Return the buffers as used, with nothing written; the driver sees all at once.

        Return whether further buffers may be available. If none were when these were popped,
        notifications are enabled first, as by `SplitQueue.enable_notifications`.
        """
        cdef uint32_t i
        for i in range(self.count):
            self._queue._set_used(self._heads[i], 0)
        self._queue._publish_used()
        return not self._are_all or self._queue._enable_notifications()

    cdef bint _reserve(self, uint64_t length) noexcept:
        """Make room for another request; false if there is no memory."""
        cdef uint64_t needed = max(self.readable_bytes + length, <uint64_t>FIRST_BYTES)
        cdef uint8_t *grown
        if needed <= self._capacity:
            return True
        grown = <uint8_t *>realloc(self._bytes, max(needed, 2 * self._capacity))
        if grown == NULL:
            return False
        self._bytes, self._capacity = grown, max(needed, 2 * self._capacity)
        return True

    cdef int _add(self, uint16_t head, uint64_t length, RunList *runs) except -1:
        """Add the request at the end of `_bytes`, with its pages; `runs` is then invalid."""
        cdef RunList *all = &self.runs.list
        cdef size_t i
        self._heads[self.count] = head
        self.readable_bytes += length
        self._ends[self.count] = self.readable_bytes
        self.count += 1
        for i in range(runs.count):
            self.pages += runs.items[i].end - runs.items[i].start
        if self.count == 1:
            all[0], runs[0] = runs[0], all[0]
            return 0
        for i in range(runs.count):
            if not append(all, runs.items[i].start, runs.items[i].end):
                raise MemoryError
        return 0


@cython.final
cdef class PageRequestReader:
    """Pops requests of the dialect `format` that name pages of `ram` only.

    No batch is of more than `max_requests`, 1 to 64. ValueError for another number or format.
    """

    cdef int _format
    cdef PageRuns _ram
    cdef uint32_t _max_requests

    def __cinit__(self, format, PageRuns ram not None, int max_requests=MAX_REQUESTS):
        if not 1 <= max_requests <= MAX_REQUESTS:
            raise ValueError(f"batches of {max_requests} requests")
        self._format = number_of(format)
        self._ram = ram
        self._max_requests = max_requests

    def pop(
        self, SplitQueue queue not None, uint64_t max_readable_bytes,
        uint32_t max_requests=MAX_REQUESTS,
    ):
        """Pop the next requests of `queue` and return them as `PageRequests`.

        The batch ends before a request that is not valid or exceeds `max_readable_bytes`, before a
        buffer with a device-writable part, and before a malformed chain. If that is the next one,
        it is popped as by `SplitQueue.pop`: a `Chain`, or RingError. It has at most
        `max_requests` requests, at least one. None if no buffer is available.
        """
        cdef int available = queue._available()
        cdef uint32_t most = min(self._max_requests, max_requests, <uint32_t>available)
        cdef PageRequests batch
        cdef RunList runs
        cdef uint16_t head = 0
        cdef bint valid
        if available == 0:
            return None
        batch = PageRequests.__new__(PageRequests)
        batch._queue = queue
        batch.runs = PageRuns.__new__(PageRuns)
        while batch.count < max(most, 1) and (
                batch.readable_bytes < MAX_BATCH_BYTES and batch.runs.list.count < MAX_BATCH_RUNS):
            head = queue._next_head()
            if batch.count == 0:
                queue._check(head)
            elif queue._walk(head) != NULL:
                break
            memset(&runs, 0, sizeof(runs))
            try:
                valid = self._read(queue, max_readable_bytes, batch, &runs)
                if valid:
                    queue._advance(head)
                    batch._add(head, queue._readable_bytes, &runs)
            finally:
                free(runs.items)
            if not valid:
                break
        if batch.count == 0:
            queue._advance(head)
            return queue._take(head, max_readable_bytes)
        batch._are_all = batch.count == <uint32_t>available
        batch.runs._finish(
            batch.count == 1 or sort_and_merge(&batch.runs.list, False) == NO_FAULT)
        return batch

    cdef bint _read(
        self, SplitQueue queue, uint64_t max_readable_bytes, PageRequests batch, RunList *runs
    ) noexcept:
        """Copy the chain that `queue` has walked behind the others, and decode it to `runs`.

        Return whether it is valid.
        """
        cdef uint64_t length = queue._readable_bytes
        cdef uint8_t *copy
        cdef bint valid
        if queue._writable_bytes or length > max_readable_bytes or not batch._reserve(length):
            return False
        copy = batch._bytes + batch.readable_bytes
        if length < GIL_FREE_REQUEST_BYTES:
            return self._decode(queue, copy, length, runs)
        with nogil:
            valid = self._decode(queue, copy, length, runs)
        return valid

    cdef bint _decode(
        self, SplitQueue queue, uint8_t *copy, uint64_t length, RunList *runs
    ) noexcept nogil:
        cdef Header header
        queue._gather(copy)
        return (decode_message(runs, self._format, True, copy, length, &header) == VALID
                and is_within(runs, &self._ram.list))


def decode(format, message, is_request=True):
    """Return the pages that a message of the dialect `format` names; ValueError if it is invalid.

    A request, on the inflate or deflate queue, has no command, flag or id, and names each page
    once. A message that is none may have them, and name a page twice.
    """
    cdef PageRuns result = PageRuns.__new__(PageRuns)
    cdef Py_buffer view
    cdef Header header
    cdef int number = number_of(format)
    cdef bint request = is_request
    cdef Why why
    PyObject_GetBuffer(message, &view, PyBUF_SIMPLE)
    try:
        with nogil:
            why = decode_message(
                &result.list, number, request, <const uint8_t *>view.buf, view.len, &header)
    finally:
        PyBuffer_Release(&view)
    if why != VALID and why != OUT_OF_MEMORY:
        raise ValueError(explain(number, why, &header))
    return result._finish(why == VALID)


cdef int number_of(str format) except -1:
    if format not in FORMATS:
        raise ValueError(f"{format} is not the name of a dialect")
    return FORMATS[format]


cdef str explain(int format, Why why, const Header *header):
    if why == NO_ARRAY:
        return f"{header.supplied_bytes} bytes are not an array of 32-bit page frame numbers"
    if why == TWICE_IN_ARRAY:
        return "the array names a page twice"
    if why == TOO_SHORT:
        name = "bitmap header" if format == BITMAP else "header"
        return f"{header.supplied_bytes} bytes are too short for a {name}"
    if why == COMMAND:
        return f"unknown command {header.command}"
    if why == FLAG:
        return f"unknown flag {header.flag:#x}"
    if why == ID:
        return f"id {header.id} is not 0"
    if why == PAGE_SIZE:
        return f"page_shift {header.page_shift} is not a page size"
    if why == START:
        return f"start_pfn {header.start_pfn:#x} is not a multiple of 64"
    if why == ADDRESS:
        return f"start_pfn {header.start_pfn:#x} is beyond any address"
    if why == RECORDS:
        text = _FAULTS[header.record_fault]
        if header.record_fault == NAMED_TWICE:
            return text
        return f"{text}, at byte {header.record_at} of the records"
    name = "bmap_len" if format == BITMAP else "data_len"
    if why == SUPPLIED:
        return f"{name} {header.length} but only {header.supplied_bytes} bytes supplied"
    if why == EMPTY:
        return f"{name} 0"
    kind = "positive multiple" if format == BITMAP else "multiple"
    return f"{name} {header.length} is not a {kind} of {WORD_BYTES}"


cdef bint is_within(const RunList *a, const RunList *b) noexcept nogil:
    """Return whether `b` has all frames of `a`; both ascend, and their runs are separate."""
    cdef size_t i, j = 0
    for i in range(a.count):
        while j < b.count and b.items[j].end <= a.items[i].start:
            j += 1
        if j == b.count or a.items[i].start < b.items[j].start or a.items[i].end > b.items[j].end:
            return False
    return True
