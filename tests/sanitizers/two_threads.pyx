# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The loops of `tests.sanitizers.races` that run without the GIL, like a vCPU or a guest.

They call the C interface of the native modules in a thread of their own, so that no lock of the
interpreter orders their accesses against those of the other thread.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset
from posix.unistd cimport usleep

from pyvmm_native.access cimport (
    full_barrier, load_acquire_u16, load_u16, store_release_u16, store_u16,
)
from pyvmm_native.memory cimport PAGE_BYTES, GuestMemory
from pyvmm_native.serial cimport SerialFastPath

cdef enum:
    LSR = 5
    DESC_BYTES = 16
    DESC_F_NEXT = 1
    DESC_F_WRITE = 2
    MESSAGE_BYTES = 64


def copy_pages(GuestMemory memory not None, const uint8_t[::1] data not None, int times):
    """Copy `data` to every second page of RAM from gpa 0 on, `times` times."""
    cdef uint64_t page, pages = memory.size_bytes // PAGE_BYTES
    cdef int _
    with nogil:
        for _ in range(times):
            for page in range(0, pages, 2):
                memory.copy_in(page * PAGE_BYTES, &data[0], data.shape[0])


def print_characters(SerialFastPath serial not None, int port, int first, int count):
    """Print the characters from number `first` on as a guest does: LSR, then THR.

    Return how many the fast path served before it refused one.
    """
    cdef uint8_t status
    cdef int done = 0
    with nogil:
        while done < count:
            serial.serve_read(port + LSR, &status)
            if not serial.serve_write(port, <uint8_t>(first + done)):
                break
            done += 1
    return done


cdef struct Ring:
    uint32_t size
    bint event_idx
    uint8_t *desc
    uint8_t *avail
    uint8_t *used
    uint8_t *messages


cdef struct Descriptor:
    uint64_t addr
    uint32_t length
    uint16_t flags
    uint16_t next


cdef struct UsedElement:
    uint32_t id
    uint32_t length


cdef class Driver:
    """A driver of a split virtqueue (VIRTIO 1.2, 2.7.13 and 2.7.14) that runs without the GIL.

    Each buffer is a message of 64 equal bytes, its number, and room for a reply, which must be the
    message inverted. The areas are at multiples of `area_bytes` from gpa 0 on: descriptors,
    available ring, used ring, messages.
    """

    cdef Ring ring
    cdef uint64_t messages_gpa
    cdef uint32_t sent_notifications

    def __init__(self, GuestMemory memory not None, uint32_t size, uint64_t area_bytes,
                 bint event_idx):
        self.ring.size = size
        self.ring.event_idx = event_idx
        self.ring.desc = <uint8_t *>memory.translate(0, area_bytes)
        self.ring.avail = <uint8_t *>memory.translate(area_bytes, area_bytes)
        self.ring.used = <uint8_t *>memory.translate(2 * area_bytes, area_bytes)
        self.messages_gpa = 3 * area_bytes
        self.ring.messages = <uint8_t *>memory.translate(
            self.messages_gpa, size * MESSAGE_BYTES)
        if self.ring.messages == NULL:
            raise ValueError("the areas are not inside guest RAM")

    @property
    def notifications(self):
        """Number of available buffer notifications so far."""
        return load_counter(&self.sent_notifications)

    def run(self, uint32_t count):
        """Send `count` messages and check their replies; return the number of wrong ones."""
        cdef uint32_t sent = 0, seen = 0, wrong = 0
        with nogil:
            # Message n has descriptors 2n and 2n + 1, and a slot of memory for each.
            while seen < count:
                while sent < count and sent - seen < self.ring.size // 2:
                    self._send(sent)
                    sent += 1
                if <uint16_t>seen == load_acquire_u16(self.ring.used + 2):
                    usleep(1)
                    continue
                wrong += self._check(seen)
                seen += 1
                # 2.7.7.1: request an interrupt for the next one.
                store_u16(self.ring.avail + 4 + 2 * self.ring.size, <uint16_t>seen)
        return wrong

    cdef void _send(self, uint32_t number) noexcept nogil:
        cdef uint32_t head = number * 2 % self.ring.size
        cdef uint64_t gpa = self.messages_gpa + head * MESSAGE_BYTES
        cdef Descriptor *desc = <Descriptor *>self.ring.desc + head
        cdef uint16_t index = <uint16_t>number
        memset(self.ring.messages + head * MESSAGE_BYTES, <int>(number & 0xFF), MESSAGE_BYTES)
        desc[0] = Descriptor(gpa, MESSAGE_BYTES, DESC_F_NEXT, <uint16_t>(head + 1))
        desc[1] = Descriptor(gpa + MESSAGE_BYTES, MESSAGE_BYTES, DESC_F_WRITE, 0)
        (<uint16_t *>(self.ring.avail + 4))[index % self.ring.size] = <uint16_t>head
        store_release_u16(self.ring.avail + 2, index + 1)
        full_barrier()
        if self._is_notification_due(index):
            add_to_counter(&self.sent_notifications)

    cdef bint _is_notification_due(self, uint16_t index) noexcept nogil:
        if self.ring.event_idx:  # 2.7.10.1
            return load_u16(self.ring.used + 4 + 8 * self.ring.size) == index
        return not load_u16(self.ring.used) & 1

    cdef bint _check(self, uint32_t number) noexcept nogil:
        """Return whether the used element or the reply of message `number` is wrong."""
        cdef uint32_t head = number * 2 % self.ring.size
        cdef UsedElement used = (<UsedElement *>(self.ring.used + 4))[number % self.ring.size]
        cdef uint8_t expected[MESSAGE_BYTES]
        memset(expected, <int>(number & 0xFF) ^ 0xFF, MESSAGE_BYTES)
        return (used.id != head or used.length != MESSAGE_BYTES
                or memcmp(self.ring.messages + (head + 1) * MESSAGE_BYTES, expected,
                          MESSAGE_BYTES) != 0)


cdef extern from *:
    """
    #define load_counter(counter) __atomic_load_n(counter, __ATOMIC_ACQUIRE)
    #define add_to_counter(counter) __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED)
    """
    uint32_t load_counter(uint32_t *counter) noexcept nogil
    void add_to_counter(uint32_t *counter) noexcept nogil
