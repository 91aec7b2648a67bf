# SPDX-License-Identifier: Apache-2.0
"""The driver's side of a split virtqueue (VIRTIO 1.2, 2.7), for tests, benchmarks and fuzzers.

`DriverQueue` lays out the three areas of a queue in a `GuestMemory` and does what a driver does: it
fills in descriptors, makes buffers available and takes them back from the used ring. It is written
for reading, not for speed, and goes through `GuestMemory.read` and `.write` only. For a hostile
driver, the `set_*` methods overwrite any field.

    from devices.testing import DriverQueue, Used, guest_memory

    memory = guest_memory(1 << 20)
    driver = DriverQueue(memory, size=16)
    queue = driver.device_queue()
    driver.add(readable=[b"header", b"payload"], writable=[16])
    chain = queue.pop(4096)
    chain.write(b"result")
    queue.push(chain, 6)
    assert driver.take_used() == [Used(head=0, length=6, data=b"result")]
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pyvmm_native import PAGE_BYTES
from pyvmm_native.memory import GuestMemory
from pyvmm_native.ring import SplitQueue

NEXT, WRITE, INDIRECT = 1, 2, 4
"""VIRTQ_DESC_F_* (2.7.5)."""
NO_INTERRUPT = 1
"""VIRTQ_AVAIL_F_NO_INTERRUPT (2.7.6)."""
NO_NOTIFY = 1
"""VIRTQ_USED_F_NO_NOTIFY (2.7.8)."""


def ring_bytes(size: int) -> int:
    """Return the bytes, in whole pages, that the areas of a queue of `size` entries take."""
    return -(-(16 * size + _round_up(6 + 2 * size, 4) + 6 + 8 * size) // PAGE_BYTES) * PAGE_BYTES


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


class Used(NamedTuple):
    """A buffer the device returned, the one with the descriptor `head`.

    `data` is the first `length` bytes of its writable part.
    """

    head: int
    length: int
    data: bytes


@dataclass
class _InFlight:
    descriptors: list[int]
    writable: list[tuple[int, int]]  # (gpa, bytes)


class DriverQueue:
    """The driver's side of one queue of `size` entries in `memory`.

    Descriptor table, available ring and used ring lie at `base_gpa` (default: the start of RAM), at
    `desc_gpa`, `avail_gpa` and `used_gpa`.
    Buffers and indirect tables are placed from `data_gpa` (default: behind the rings) up to the
    end of that region of RAM; the space is reused whenever no buffer is in flight. `event_idx` and
    `indirect` are the features of the queue. Both ring indices start at `start_index`. With `rng`,
    free descriptors are taken in random order instead of ascending. ValueError when there is no RAM
    at `data_gpa`.
    """

    def __init__(
        self,
        memory: GuestMemory,
        size: int = 16,
        *,
        base_gpa: int | None = None,
        data_gpa: int | None = None,
        event_idx: bool = False,
        indirect: bool = False,
        start_index: int = 0,
        rng: random.Random | None = None,
    ) -> None:
        self.memory = memory
        self.size = size
        self.event_idx = event_idx
        self.indirect = indirect
        self.desc_gpa = memory.regions[0][0] if base_gpa is None else base_gpa
        self.avail_gpa = self.desc_gpa + 16 * size
        self.used_gpa = _round_up(self.avail_gpa + 6 + 2 * size, 4)
        self.data_gpa = self.desc_gpa + ring_bytes(size) if data_gpa is None else data_gpa
        ends = [gpa + n for gpa, n in memory.regions if gpa <= self.data_gpa < gpa + n]
        if not ends:
            raise ValueError(f"no RAM for a queue's buffers at {self.data_gpa:#x}")
        self._data_end = ends[0]
        self._data_next = self.data_gpa
        self._start_index = start_index & 0xFFFF
        self._next_avail = self._last_used = self._start_index
        self._last_notified = self._start_index
        self._free = list(range(size))
        if rng is not None:
            rng.shuffle(self._free)
        self._in_flight: dict[int, _InFlight] = {}
        memory.write(self.desc_gpa, bytes(self.used_gpa + 6 + 8 * size - self.desc_gpa))
        self.set_avail_idx(self._start_index)
        self._put16(self.used_gpa + 2, self._start_index)
        self.set_used_event(self._start_index)
        self._put16(self._avail_event_gpa, self._start_index)

    def device_queue(self) -> SplitQueue:
        """Return the device's side of the same queue, at the same indices."""
        queue = SplitQueue(
            self.memory,
            self.size,
            self.desc_gpa,
            self.avail_gpa,
            self.used_gpa,
            event_idx=self.event_idx,
            indirect=self.indirect,
        )
        if self._start_index:
            queue.next_avail = queue.next_used = self._start_index
        return queue

    # Operation.

    def add(
        self,
        readable: Sequence[bytes] = (),
        writable: Sequence[int] = (),
        *,
        writable_segments: Sequence[tuple[int, int]] = (),
        indirect: bool = False,
        direct_first: int = 0,
        publish: bool = True,
    ) -> int:
        """Make one buffer available; return the index of its head descriptor.

        `readable` are the contents of its device-readable elements, `writable` the sizes in bytes
        of its device-writable ones, which are filled with 0xEE; `writable_segments` are further
        device-writable elements as (gpa, size in bytes), whose contents stay as they are. With
        `indirect`, all but the first `direct_first` elements go into an indirect table (2.7.5.3).
        IndexError when too few descriptors are free, MemoryError when there is too little RAM.
        Without `publish` the available index does not move until `publish` is called.
        """
        elements = [(self.place(data), len(data), 0) for data in readable]
        spaces = [*((self.place(b"\xee" * count), count) for count in writable), *writable_segments]
        elements += [(gpa, count, WRITE) for gpa, count in spaces]
        if indirect:
            table = chain_table(elements[direct_first:])
            elements[direct_first:] = [(self.place(table), len(table), INDIRECT)]
        if len(elements) > len(self._free):
            raise IndexError(f"{len(elements)} descriptors needed, {len(self._free)} free")
        indices = [self._free.pop(0) for _ in elements]
        for i, (gpa, length, flags) in enumerate(elements):
            last = i == len(elements) - 1
            self.set_desc(
                indices[i],
                gpa,
                length,
                flags | (0 if last else NEXT),
                0 if last else indices[i + 1],
            )
        self._in_flight[indices[0]] = _InFlight(indices, spaces)
        self.set_avail_ring(self._next_avail, indices[0])
        self._next_avail = (self._next_avail + 1) & 0xFFFF
        if publish:
            self.publish()
        return indices[0]

    def publish(self) -> None:
        """Move the available index past all buffers added."""
        self.set_avail_idx(self._next_avail)

    def should_notify(self) -> bool:
        """Return whether the device needs a notification for buffers published since last called.

        By VIRTQ_USED_F_NO_NOTIFY, or with EVENT_IDX by `avail_event` (2.7.10).
        """
        old, self._last_notified = self._last_notified, self._next_avail
        if not self.event_idx:
            return not self.used_flags & NO_NOTIFY and old != self._next_avail
        return need_event(self.avail_event, self._next_avail, old)

    def take_used(self) -> list[Used]:
        """Take back every buffer returned since the last call, in the order of the used ring.

        AssertionError for a buffer that was not in flight, or one with more bytes written than it
        has room for.
        """
        taken = []
        while self._last_used != self.used_idx:
            slot = self.used_gpa + 4 + 8 * (self._last_used % self.size)
            head, length = struct.unpack("<II", self.memory.read(slot, 8))
            self._last_used = (self._last_used + 1) & 0xFFFF
            assert head in self._in_flight, f"descriptor {head} is not in flight"
            buffer = self._in_flight.pop(head)
            data = b"".join(self.memory.read(gpa, count) for gpa, count in buffer.writable)
            assert length <= len(data), f"{length} bytes written to a buffer of {len(data)}"
            self._free += buffer.descriptors
            taken.append(Used(head, length, data[:length]))
        if self.event_idx:
            self.set_used_event(self._last_used)
        if not self._in_flight:
            self._data_next = self.data_gpa
        return taken

    @property
    def free_descriptors(self) -> int:
        """Number of free descriptors."""
        return len(self._free)

    @property
    def in_flight(self) -> int:
        """Number of buffers that the device has not returned."""
        return len(self._in_flight)

    def place(self, data: bytes, align: int = 16) -> int:
        """Copy `data` into the data area, at a multiple of `align` bytes; return its gpa."""
        gpa = _round_up(self._data_next, align)
        if gpa + len(data) > self._data_end:
            raise MemoryError(f"the data area has no room for {len(data)} bytes")
        self.memory.write(gpa, data)
        self._data_next = gpa + len(data)
        return gpa

    # Raw access, for hostile drivers: values are taken modulo the size of the field.

    def set_desc(self, index: int, gpa: int, length: int, flags: int = 0, next_: int = 0) -> None:
        """Overwrite descriptor `index`, which may lie outside the table."""
        self.memory.write(self.desc_gpa + 16 * index, descriptor(gpa, length, flags, next_))

    def set_avail_flags(self, flags: int) -> None:
        """Overwrite the flags of the available ring."""
        self._put16(self.avail_gpa, flags)

    def set_avail_idx(self, index: int) -> None:
        """Overwrite the index of the available ring."""
        self._put16(self.avail_gpa + 2, index)

    def set_avail_ring(self, slot: int, head: int) -> None:
        """Overwrite element `slot` modulo Queue Size of the available ring."""
        self._put16(self.avail_gpa + 4 + 2 * (slot % self.size), head)

    def set_used_event(self, index: int) -> None:
        """Overwrite `used_event`, behind the available ring."""
        self._put16(self.avail_gpa + 4 + 2 * self.size, index)

    @property
    def avail_idx(self) -> int:
        """Index of the available ring, as the device reads it."""
        return self._get16(self.avail_gpa + 2)

    @property
    def used_flags(self) -> int:
        """Flags of the used ring."""
        return self._get16(self.used_gpa)

    @property
    def used_idx(self) -> int:
        """Index of the used ring."""
        return self._get16(self.used_gpa + 2)

    @property
    def avail_event(self) -> int:
        """`avail_event`, behind the used ring."""
        return self._get16(self._avail_event_gpa)

    @property
    def _avail_event_gpa(self) -> int:
        return self.used_gpa + 4 + 8 * self.size

    def _get16(self, gpa: int) -> int:
        return int.from_bytes(self.memory.read(gpa, 2), "little")

    def _put16(self, gpa: int, value: int) -> None:
        self.memory.write(gpa, (value & 0xFFFF).to_bytes(2, "little"))


def descriptor(gpa: int, length: int, flags: int = 0, next_: int = 0) -> bytes:
    """Return a 16-byte descriptor (2.7.5); every field is taken modulo its size."""
    return struct.pack(
        "<QIHH", gpa & (1 << 64) - 1, length & 0xFFFFFFFF, flags & 0xFFFF, next_ & 0xFFFF
    )


def chain_table(elements: Sequence[tuple[int, int, int]]) -> bytes:
    """Return an indirect table (2.7.5.3) that chains (gpa, length, flags) elements in order."""
    last = len(elements) - 1
    return b"".join(
        descriptor(gpa, length, flags | (NEXT if i < last else 0), i + 1 if i < last else 0)
        for i, (gpa, length, flags) in enumerate(elements)
    )


def need_event(event: int, new: int, old: int) -> bool:
    """Return whether an index moved past `event` from `old` to `new`, modulo 2**16 (2.7.7.2)."""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
