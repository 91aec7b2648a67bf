# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=True, embedsignature.format=clinic
"""The device's side of a split virtqueue (VIRTIO 1.2, 2.7).

A queue is three areas of guest RAM: the descriptor table and the available ring, which the
driver writes, and the used ring, which the device writes. Their host addresses are looked up
once, when the queue is created.

The driver may be malicious and runs at the same time. So every field is loaded exactly once, with
a volatile or atomic access that the compiler may not repeat, into a local that is then checked
and used. A walk over a chain first collects its elements as (gpa, length) pairs, each checked to
be RAM; only a chain that is valid as a whole is copied. A walk takes at most Queue Size elements,
so a loop ends. A malformed ring or chain raises `RingError` and leaves the queue as it was.

Order (2.7.13.3, 2.7.14): the available index is loaded with acquire order, so what the driver
wrote before it is seen after it; the used index is stored with release order, after the element
it publishes. Where one side publishes an index and then reads what the other side may be
publishing at the same moment, only a full barrier keeps both from missing each other.

While the `EventBuffer` given to `trace` is watched, every descriptor walked, every chain, used
element and decision about a notification is an event of it.
"""

cimport cython
from cpython.buffer cimport Py_buffer, PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from pyvmm_native.access cimport (
    full_barrier, load_acquire_u16, load_any_u64, load_u16, store_release_u16, store_u16,
    store_u32,
)
from pyvmm_native.events cimport (
    AVAIL_NOTIFICATIONS, CHAIN, DESCRIPTOR, EventBuffer, USED, USED_NOTIFICATION,
)
from pyvmm_native.memory cimport GIL_FREE_BYTES, GuestMemory

cdef enum:
    MAX_QUEUE_SIZE = 32768     # 2.7
    DESC_BYTES = 16
    DESC_F_NEXT = 1            # 2.7.5
    DESC_F_WRITE = 2
    DESC_F_INDIRECT = 4
    AVAIL_F_NO_INTERRUPT = 1   # 2.7.6
    USED_F_NO_NOTIFY = 1       # 2.7.8
    RING_FLAGS = 0             # both rings: u16 flags, u16 idx, then the elements
    RING_IDX = 2
    RING_ELEMENTS = 4
    ALL_EVENTS = 65536         # after this many buffers every event index has been passed

# 2.7.5.2: a chain is not longer than this in total.
cdef uint64_t MAX_CHAIN_BYTES = <uint64_t>1 << 32


class RingError(Exception):
    """A malformed ring or descriptor chain: the driver's fault, after which the device needs a
    reset.

    The message names the fault. The queue is left as it was before the call.
    """


@cython.final
cdef class Chain:
    """One buffer the driver made available, already checked (VIRTIO 1.2, 2.7.5).

    Created only by `SplitQueue.pop` and `SplitQueue.restore_in_flight`. All its elements are in
    guest RAM, device-readable elements come before device-writable ones, and it is at most Queue
    Size elements and 2**32 bytes long.

    `head` is the index of the first descriptor, by which the buffer is returned (2.7.8). `readable`
    is the device-readable part, copied out of guest memory once, and empty when `readable_bytes`
    exceeds the limit given to `pop`. `readable_bytes` and `writable_bytes` are the sizes of the two
    parts as the driver described them.
    """

    def __init__(self):
        raise TypeError("only SplitQueue.pop creates chains")

    def __dealloc__(self):
        free(self._segments)

    @property
    def writable_segments(self):
        """(gpa, length in bytes) of each device-writable element, in order.

        For devices that take a buffer as the message itself, not as room to write. Each element is
        in guest RAM; elements of zero bytes are left out.
        """
        # As many as the chain has elements, so at most Queue Size.
        cdef uint32_t i
        return tuple([
            (self._segments[i].gpa, self._segments[i].length)
            for i in range(self._readable_count, self._segment_count)
            if self._segments[i].length
        ])

    def write(self, data):
        """Copy `data` to the start of the device-writable part and return its size in bytes.

        ValueError when it is longer than `writable_bytes`. A second call overwrites the first.
        """
        cdef Py_buffer source
        PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)
        try:
            if <uint64_t>source.len > self.writable_bytes:
                raise ValueError(f"{source.len} bytes for {self.writable_bytes} writable ones")
            if source.len < GIL_FREE_BYTES:
                self._scatter(<const uint8_t *>source.buf, source.len)
            else:
                with nogil:
                    self._scatter(<const uint8_t *>source.buf, source.len)
            return source.len
        finally:
            PyBuffer_Release(&source)

    def __repr__(self):
        return (f"<Chain head={self.head} readable_bytes={self.readable_bytes} "
                f"writable_bytes={self.writable_bytes}>")

    cdef void _gather(self, uint8_t *target) noexcept nogil:
        gather(self._memory, self._segments, self._readable_count, target)

    cdef void _scatter(self, const uint8_t *source, uint64_t length) noexcept nogil:
        cdef Segment *segment = self._segments + self._readable_count
        cdef uint64_t part
        while length:
            part = min(length, segment.length)
            self._memory.copy_in(segment.gpa, source, part)
            source += part
            length -= part
            segment += 1


@cython.final
cdef class SplitQueue:
    """The device side of one split virtqueue of `size` entries.

    The areas are given by guest-physical address. RingError when `size` is not a power of two from
    1 to 32768, or when an area is not aligned (16, 2 and 4 bytes) or not inside one region of
    `memory` (VIRTIO 1.2, 2.7). `event_idx` and `indirect` are True if VIRTIO_F_EVENT_IDX and
    VIRTIO_F_INDIRECT_DESC were negotiated. Indices start at 0; nothing is written to the ring.

    `memory`, `size`, `event_idx` and `indirect` are as given.

    Only one thread may use a queue at a time. The driver may change the ring meanwhile.
    """

    def __cinit__(self, GuestMemory memory not None, size, desc_gpa, avail_gpa, used_gpa, *,
                  bint event_idx=False, bint indirect=False):
        # 2.7: the queue size is a power of two, at most 32768.
        if not 1 <= size <= MAX_QUEUE_SIZE or size & (size - 1):
            raise RingError(f"queue size {size} is not a power of two from 1 to {MAX_QUEUE_SIZE}")
        self.memory = memory
        self.size = size
        self.event_idx = event_idx
        self.indirect = indirect
        # 2.7: alignment and size of the three areas; the rings end with an event index each.
        self._desc = self._area("descriptor table", desc_gpa, 16, DESC_BYTES * self.size)
        self._avail = self._area("available ring", avail_gpa, 2, 6 + 2 * self.size)
        self._used = self._area("used ring", used_gpa, 4, 6 + 8 * self.size)
        self._used_gpa = used_gpa
        self._segments = <Segment *>malloc(self.size * sizeof(Segment))
        if self._segments == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self._segments)

    def trace(self, EventBuffer events not None, device, queue):
        """Emit events to `events`, with these names of the device and the queue."""
        self._device_id = events.string_id(str(device))
        self._queue_id = events.string_id(str(queue))
        self._by_flag = events.string_id("flag")
        self._by_index = events.string_id("event index")
        self._events = events

    cdef uint8_t *_area(self, object name, object gpa, int alignment, uint64_t length) except NULL:
        cdef uint8_t *hva = NULL
        if gpa % alignment:
            raise RingError(f"{name} at gpa {gpa:#x} is not aligned to {alignment} bytes")
        if 0 <= gpa < 1 << 64:
            hva = <uint8_t *>self.memory.translate(gpa, length)
        if hva == NULL:
            raise RingError(f"{name} of {length} bytes at gpa {gpa:#x} is not in guest RAM")
        return hva

    cdef void _mark_used_dirty(self) noexcept:
        self.memory.mark_dirty(self._used_gpa, 6 + 8 * <uint64_t>self.size)

    @property
    def next_avail(self):
        """Index, modulo 2**16, of the next buffer to pop.

        Set it only to restore a saved queue.
        """
        return self._next_avail

    @next_avail.setter
    def next_avail(self, uint16_t value):
        self._next_avail = value

    @property
    def next_used(self):
        """Index, modulo 2**16, of the next used element; the ring is not consulted for it.

        Set it only to restore a saved queue. It is not known then whether the driver was notified
        of the last used buffers, so the next `should_interrupt` assumes that it was not.
        """
        return self._next_used

    @next_used.setter
    def next_used(self, uint16_t value):
        self._next_used = value
        # It is not known whether the driver was notified of what is already in the ring.
        self._unsignalled = ALL_EVENTS

    @property
    def pending(self):
        """Number of buffers available and not yet popped.

        RingError when the driver has more buffers in the queue than it can hold, used ones not
        counted: a device that keeps buffers so never keeps more than that.
        """
        return self._available()

    cdef int _available(self) except -1:
        cdef uint16_t avail_idx = load_acquire_u16(self._avail + RING_IDX)
        cdef uint16_t unused = avail_idx - self._next_used
        cdef uint16_t count = avail_idx - self._next_avail
        # Each buffer that is not used yet has a descriptor of its own (2.7.5), and an element of
        # the ring (2.7.6). A driver that takes back what was popped makes `count` the larger one.
        if unused > self.size or count > unused:
            raise RingError(f"{max(unused, count)} buffers available in a queue of {self.size}")
        return count

    cdef uint16_t _next_head(self) noexcept nogil:
        return load_u16(self._avail + RING_ELEMENTS + 2 * (self._next_avail & (self.size - 1)))

    cdef int _check(self, uint16_t head) except -1:
        cdef const char *fault = self._walk(head)
        if fault != NULL:
            raise RingError(f"chain at descriptor {head}: {fault.decode()}")
        return 0

    cdef void _advance(self, uint16_t head) noexcept:
        if self._watched():
            self._emit_chain(head)
        self._next_avail += 1

    def pop(self, uint64_t max_readable_bytes):
        """Take the next available buffer; None when there is none (VIRTIO 1.2, 2.7.6).

        At most Queue Size elements are walked. When the device-readable part is larger than
        `max_readable_bytes`, the chain is returned with `readable` empty, to be pushed with length
        0; it is never dropped. An element of zero bytes is legal, since no clause of 2.7 forbids
        it; its address is ignored.

        RingError for a malformed ring or chain: head or next index outside the table, a loop or
        more than Queue Size elements, an address outside RAM, a device-readable element after a
        writable one (2.7.4.2), more than 2**32 bytes (2.7.5.2), and indirect tables that were not
        negotiated, are nested, carry NEXT, or whose size is zero or not a multiple of 16
        (2.7.5.3.1).
        """
        if self._available() == 0:
            return None
        cdef uint16_t head = self._next_head()
        self._check(head)
        self._advance(head)
        return self._take(head, max_readable_bytes)

    def pop_batch(self, Py_ssize_t max_buffers, uint64_t max_bytes):
        """Take the next buffers that have no device-writable part, and return their chains.

        At most `max_buffers` of at most `max_bytes` together; their `readable` is empty, a
        `ChainReader` reads them. The list ends before a buffer that has a device-writable part,
        exceeds `max_bytes` or is malformed, which `pop` then returns or reports. RingError when the
        available index is malformed.
        """
        cdef int available = self._available()
        cdef list chains = []
        cdef uint16_t head
        while available > 0 and len(chains) < max_buffers:
            head = self._next_head()
            if self._walk(head) != NULL:
                break
            if self._writable_bytes or self._readable_bytes > max_bytes:
                break
            max_bytes -= self._readable_bytes
            self._advance(head)
            available -= 1
            chains.append(self._take(head, 0))
        return chains

    def rewind(self, Py_ssize_t count):
        """Make the last `count` buffers that were popped available again.

        Nothing may depend on their contents: the driver may have changed them when they are popped
        again. ValueError when fewer are in flight.
        """
        if not 0 <= count <= <uint16_t>(self._next_avail - self._next_used):
            raise ValueError(f"{count} buffers are more than those in flight")
        self._next_avail -= <uint16_t>count

    def restore_in_flight(self, uint16_t head, writable_segments):
        """Return the chain of a buffer that was popped, but not pushed, when this queue was saved.

        `writable_segments` are (gpa, length in bytes) pairs as the driver described them then; the
        descriptors are not read again, and the device-readable part is empty. RingError,
        as for `pop`, if no pop can have returned such a chain.
        """
        cdef Descriptor desc
        cdef const char *fault
        if head >= self.size:
            raise RingError(f"descriptor {head} in a queue of {self.size}")
        self._readable_count = self._segment_count = 0
        self._readable_bytes = self._writable_bytes = 0
        for gpa, length in writable_segments:
            desc.addr, desc.length, desc.flags = gpa, length, DESC_F_WRITE
            fault = self._accept(&desc)
            if fault != NULL:
                raise RingError(f"chain at descriptor {head}: {fault.decode()}")
        return self._take(head, 0)

    def push(self, chain, written=0):
        """Return a buffer, given by its chain or its head index, as used (VIRTIO 1.2, 2.7.8).

        `written` is the number of bytes the device wrote from the start of the writable part.
        ValueError when that exceeds the room in the chain or the index is outside the table,
        OverflowError when it does not fit 32 bits: these are errors of the device model.
        """
        cdef uint16_t head
        if isinstance(chain, Chain):
            head = (<Chain>chain).head
            # 2.7.8.2: at most the device-writable bytes can have been written.
            if written > (<Chain>chain).writable_bytes:
                raise ValueError(f"{written} bytes written to {chain!r}")
        else:
            head = chain
        cdef uint32_t length = written
        if head >= self.size:
            raise ValueError(f"descriptor {head} in a queue of {self.size}")
        self._set_used(head, length)
        self._publish_used()

    def push_batch(self, list chains not None):
        """Return the buffers of `chains` as used, with nothing written, as `push` does.

        The driver sees all of them at once.
        """
        cdef Chain chain
        for chain in chains:
            self._set_used(chain.head, 0)
        self._publish_used()

    cdef void _set_used(self, uint16_t head, uint32_t length) noexcept:
        cdef uint8_t *element = self._used + RING_ELEMENTS + 8 * (self._next_used & (self.size - 1))
        store_u32(element, head)
        store_u32(element + 4, length)
        self._next_used += 1
        if self._unsignalled < ALL_EVENTS:
            self._unsignalled += 1
        if self._watched():
            self._emit_used(head, length)

    cdef void _publish_used(self) noexcept:
        # 2.7.8.2: the elements, len included, are set before the index that publishes them.
        store_release_u16(self._used + RING_IDX, self._next_used)
        self._mark_used_dirty()

    def should_interrupt(self):
        """Return whether the driver expects a used buffer notification for recent pushes.

        Recent are those since the last call; False when there are none. Otherwise decided by
        VIRTQ_AVAIL_F_NO_INTERRUPT or, with EVENT_IDX, by whether `used_event` names one of the new
        elements (2.7.7.2), however many there are.
        """
        cdef uint32_t count = self._unsignalled
        cdef uint16_t event = 0
        cdef bint sent
        if count == 0:
            return False
        self._unsignalled = 0
        # The driver enables interrupts, then checks the used index again; we publish the index,
        # then check whether interrupts are enabled. Without the barrier both could miss.
        full_barrier()
        if self.event_idx:
            # 2.7.7.2: interrupt if the element that used_event names is among the new ones.
            event = load_u16(self._avail + RING_ELEMENTS + 2 * self.size)
            sent = <uint16_t>(self._next_used - event - 1) < count
        else:
            sent = not load_u16(self._avail + RING_FLAGS) & AVAIL_F_NO_INTERRUPT
        if self._watched():
            self._emit_used_notification(sent, event, count)
        return sent

    def enable_notifications(self):
        """Request available buffer notifications from the driver (VIRTIO 1.2, 2.7.10).

        Return whether buffers became available meanwhile, for which no notification may come: the
        caller then continues popping. Does not raise; `pop` reports a broken index.
        """
        return self._enable_notifications()

    cdef bint _enable_notifications(self) noexcept:
        if self.event_idx:
            # 2.7.10.2: flags stay 0; a notification is due when index avail_event is passed.
            store_u16(self._used + RING_ELEMENTS + 8 * self.size, self._next_avail)
        else:
            store_u16(self._used + RING_FLAGS, 0)
        self._mark_used_dirty()
        # The driver publishes its index, then reads these; see should_interrupt.
        full_barrier()
        if self._watched():
            self._emit_avail_notifications(True)
        return load_acquire_u16(self._avail + RING_IDX) != self._next_avail

    def disable_notifications(self):
        """Tell the driver that notifications are not needed; it may still send some."""
        # With EVENT_IDX there is nothing to write: the driver has passed avail_event and sends no
        # notification until enable_notifications moves it.
        if not self.event_idx:
            store_u16(self._used + RING_FLAGS, USED_F_NO_NOTIFY)
            self._mark_used_dirty()
            if self._watched():
                self._emit_avail_notifications(False)

    cdef void _gather(self, uint8_t *target) noexcept nogil:
        gather(self.memory, self._segments, self._readable_count, target)

    cdef const char *_walk(self, uint16_t head) noexcept nogil:
        cdef const uint8_t *table = self._desc
        cdef uint32_t entries = self.size
        cdef uint32_t index = head
        cdef uint64_t table_gpa = 0
        cdef bint in_indirect = False, watched = self._watched()
        cdef const char *fault
        cdef Descriptor desc
        self._readable_count = self._segment_count = 0
        self._readable_bytes = self._writable_bytes = 0
        while True:
            if index >= entries:
                return b"index outside the descriptor table"
            load_descriptor(&desc, table + DESC_BYTES * <uint64_t>index)
            if watched:
                self._emit_descriptor(head, table_gpa, index, &desc)
            if desc.flags & DESC_F_INDIRECT:
                if in_indirect:
                    return b"indirect table inside an indirect table"  # 2.7.5.3.1
                # 2.7.5.3.2: direct elements may come before the reference to a table.
                fault = self._enter_table(&desc, &table, &entries)
                if fault != NULL:
                    return fault
                in_indirect = True
                table_gpa = desc.addr
                index = 0
                continue
            fault = self._accept(&desc)
            if fault != NULL or not desc.flags & DESC_F_NEXT:
                return fault
            index = desc.next

    cdef const char *_enter_table(
        self, const Descriptor *desc, const uint8_t **table, uint32_t *entries
    ) noexcept nogil:
        # 2.7.5.3.1 in this order; the WRITE flag is ignored here (2.7.5.3.2).
        if not self.indirect:
            return b"indirect table although INDIRECT_DESC was not negotiated"
        if desc.flags & DESC_F_NEXT:
            return b"NEXT and INDIRECT in one descriptor"
        if desc.length == 0 or desc.length % DESC_BYTES:
            return b"indirect table is not a whole number of descriptors"
        table[0] = <const uint8_t *>self.memory.translate(desc.addr, desc.length)
        if table[0] == NULL:
            return b"indirect table outside guest RAM"
        entries[0] = desc.length // DESC_BYTES
        return NULL

    cdef const char *_accept(self, const Descriptor *desc) noexcept nogil:
        cdef Segment *segment = &self._segments[self._segment_count]
        # 2.7.5.3.1: a chain, indirect or not, has at most Queue Size elements.
        if self._segment_count == self.size:
            return b"longer than the queue, or a loop"
        if not self.memory.covers(desc.addr, desc.length):
            return b"element outside guest RAM"
        if desc.flags & DESC_F_WRITE:
            self._writable_bytes += desc.length
        elif self._segment_count != self._readable_count:
            return b"device-readable element after a device-writable one"  # 2.7.4.2
        else:
            self._readable_bytes += desc.length
            self._readable_count += 1
        if self._readable_bytes + self._writable_bytes > MAX_CHAIN_BYTES:
            return b"longer than 2^32 bytes"
        # No clause forbids an element of no bytes, so it is accepted: it counts towards the number
        # of elements, contributes no data, and its address is ignored.
        segment.gpa = desc.addr
        segment.length = desc.length
        self._segment_count += 1
        return NULL

    cdef Chain _take(self, uint16_t head, uint64_t max_readable_bytes):
        # The chain owns copies of all its data: another thread may pop while this one copies.
        cdef uint64_t size = self._readable_bytes
        cdef size_t table_bytes = self._segment_count * sizeof(Segment)
        cdef Chain chain = Chain.__new__(Chain)
        cdef uint8_t *target
        chain._segments = <Segment *>malloc(table_bytes)
        if chain._segments == NULL:
            raise MemoryError
        memcpy(chain._segments, self._segments, table_bytes)
        chain._readable_count = self._readable_count
        chain._segment_count = self._segment_count
        chain._memory = self.memory
        chain.head = head
        chain.readable_bytes = size
        chain.writable_bytes = self._writable_bytes
        chain.readable = b""
        if 0 < size <= max_readable_bytes:
            chain.readable = PyBytes_FromStringAndSize(NULL, size)
        if chain.readable:
            target = <uint8_t *>PyBytes_AS_STRING(chain.readable)
            if size < GIL_FREE_BYTES:
                chain._gather(target)
            else:
                with nogil:
                    chain._gather(target)
        return chain

    # --- Events, while they are watched -----------------------------------------------------
    cdef bint _watched(self) noexcept nogil:
        return self._events is not None and self._events.watched

    cdef void _emit_descriptor(
        self, uint16_t head, uint64_t table_gpa, uint32_t index, const Descriptor *desc
    ) noexcept nogil:
        cdef uint64_t[9] values = [
            self._device_id, self._queue_id, head, table_gpa, index,
            desc.addr, desc.length, desc.flags, desc.next,
        ]
        self._events.emit(DESCRIPTOR, values, 9)

    cdef void _emit_chain(self, uint16_t head) noexcept nogil:
        cdef uint64_t[7] values = [
            self._device_id, self._queue_id, head, self._next_avail, self._segment_count,
            self._readable_bytes, self._writable_bytes,
        ]
        self._events.emit(CHAIN, values, 7)

    cdef void _emit_used(self, uint16_t head, uint32_t length) noexcept nogil:
        cdef uint64_t[5] values = [
            self._device_id, self._queue_id, head, <uint16_t>(self._next_used - 1), length,
        ]
        self._events.emit(USED, values, 5)

    cdef void _emit_used_notification(
        self, bint sent, uint16_t used_event, uint32_t buffers
    ) noexcept nogil:
        cdef uint64_t[7] values = [
            self._device_id, self._queue_id, sent,
            self._by_index if self.event_idx else self._by_flag,
            used_event, self._next_used, buffers,
        ]
        self._events.emit(USED_NOTIFICATION, values, 7)

    cdef void _emit_avail_notifications(self, bint enabled) noexcept nogil:
        cdef uint64_t[5] values = [
            self._device_id, self._queue_id, enabled,
            self._by_index if self.event_idx else self._by_flag,
            self._next_avail if self.event_idx else 0,
        ]
        self._events.emit(AVAIL_NOTIFICATIONS, values, 5)


cdef void gather(
    GuestMemory memory, const Segment *segments, uint32_t count, uint8_t *target
) noexcept nogil:
    """Copy `count` checked elements to `target`."""
    cdef uint32_t i
    for i in range(count):
        memory.copy_out(segments[i].gpa, target, segments[i].length)
        target += segments[i].length


cdef inline void load_descriptor(Descriptor *desc, const uint8_t *source) noexcept nogil:
    cdef uint64_t rest = load_any_u64(source + 8)
    desc.addr = load_any_u64(source)
    desc.length = <uint32_t>rest
    desc.flags = <uint16_t>(rest >> 32)
    desc.next = <uint16_t>(rest >> 48)
