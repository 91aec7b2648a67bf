# SPDX-License-Identifier: Apache-2.0
"""The contents of a live virtqueue, decoded for people (VIRTIO 1.2, 2.7).

`inspect_queue` reads the descriptor table, the available ring and the used ring of a running
device's queue, as they are in guest memory at that moment, and the indices that the device keeps.
It changes nothing and checks nothing: the driver may write the same memory meanwhile, and a
hostile one may have written anything. Printed, the contents are a short summary.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from devices.virtio.queue import DeviceQueue
from pyvmm_native.memory import GuestMemory

NEXT, WRITE, INDIRECT = 1, 2, 4
"""VIRTQ_DESC_F_*, 2.7.5."""
_FLAG_NAMES = {NEXT: "NEXT", WRITE: "WRITE", INDIRECT: "INDIRECT"}
_DESCRIPTOR = struct.Struct("<QIHH")


class Descriptor(NamedTuple):
    """One descriptor (2.7.5): `gpa` and `length` in bytes, `flags`, `next`."""

    gpa: int
    length: int
    flags: int
    next: int

    def __str__(self) -> str:
        """Return the buffer and the flags, such as `0x1000, 64 bytes, NEXT|WRITE`."""
        names = "|".join(name for bit, name in _FLAG_NAMES.items() if self.flags & bit)
        return f"{self.gpa:#x}, {self.length} bytes" + (f", {names}" if names else "")


class UsedElement(NamedTuple):
    """One element of the used ring (2.7.8): `head` of a buffer and `length` in bytes written."""

    head: int
    length: int


class QueueContents(NamedTuple):
    """A virtqueue at one moment. Indices count modulo 2**16, ring slots are modulo `size`."""

    name: str
    size: int
    descriptors: Sequence[Descriptor]
    avail_flags: int
    avail_idx: int
    avail_ring: Sequence[int]
    """The heads of available buffers, by slot."""
    used_event: int
    used_flags: int
    used_idx: int
    used_ring: Sequence[UsedElement]
    avail_event: int
    next_avail: int
    """Index of the available buffer that the device takes next."""
    memory: GuestMemory
    """The memory in which the queue lies; indirect tables are read from it."""

    @property
    def in_flight(self) -> int:
        """Number of buffers made available and not yet used, taken by the device or not."""
        return (self.avail_idx - self.used_idx) & 0xFFFF

    @property
    def last_available(self) -> int | None:
        """Head of the buffer made available last; None while the index is 0."""
        return self.avail_ring[(self.avail_idx - 1) % self.size] if self.avail_idx else None

    @property
    def last_used(self) -> UsedElement | None:
        """The buffer returned last; None while the index is 0."""
        return self.used_ring[(self.used_idx - 1) % self.size] if self.used_idx else None

    def chain(self, head: int) -> list[Descriptor]:
        """Return the chain of descriptors from `head`, with those of an indirect table (2.7.5.3).

        At most `size` descriptors, as in a valid chain; IndexError or ValueError for a chain that
        leaves the table or guest memory.
        """
        return list(self._walk(self.descriptors, head))

    def _walk(self, table: Sequence[Descriptor], index: int) -> Iterator[Descriptor]:
        for _ in range(self.size):
            descriptor = table[index]
            yield descriptor
            if descriptor.flags & INDIRECT and table is self.descriptors:
                length = min(descriptor.length, _DESCRIPTOR.size * self.size)
                yield from self._walk(_table(self.memory.read(descriptor.gpa, length)), 0)
                return
            if not descriptor.flags & NEXT:
                return
            index = descriptor.next

    def __str__(self) -> str:
        """Return the indices, the buffers made available and used last, and that chain."""
        lines = [
            f"{self.name}: {self.size} entries, {self.in_flight} in flight",
            f"  available: idx {self.avail_idx}, last {self.last_available}",
            f"  used: idx {self.used_idx}, last {_element_text(self.last_used)}",
        ]
        if self.last_available is not None:
            lines += [f"  buffer {self.last_available}: {line}" for line in self._chain_lines()]
        return "\n".join(lines)

    def _chain_lines(self) -> list[str]:
        try:
            return [str(descriptor) for descriptor in self.chain(self.last_available or 0)]
        except (IndexError, ValueError) as error:
            return [f"malformed: {error}"]


def inspect_queue(queue: DeviceQueue) -> QueueContents:
    """Return the contents of a live queue; hold the device lock. ValueError if it is not live."""
    ring, size = queue.ring, queue.size
    if ring is None:
        raise ValueError(f"queue {queue.spec.name} is not live")
    memory = ring.memory
    avail = struct.unpack(f"<{size + 3}H", memory.read(queue.driver_gpa, 6 + 2 * size))
    used = memory.read(queue.device_gpa, 6 + 8 * size)
    used_flags, used_idx = struct.unpack_from("<HH", used)
    return QueueContents(
        name=queue.spec.name,
        size=size,
        descriptors=_table(memory.read(queue.desc_gpa, _DESCRIPTOR.size * size)),
        avail_flags=avail[0],
        avail_idx=avail[1],
        avail_ring=avail[2:-1],
        used_event=avail[-1],
        used_flags=used_flags,
        used_idx=used_idx,
        used_ring=[UsedElement(*pair) for pair in struct.iter_unpack("<II", used[4:-2])],
        avail_event=int.from_bytes(used[-2:], "little"),
        next_avail=ring.next_avail,
        memory=memory,
    )


def _table(data: bytes) -> list[Descriptor]:
    whole = len(data) // _DESCRIPTOR.size * _DESCRIPTOR.size
    return [Descriptor(*fields) for fields in _DESCRIPTOR.iter_unpack(data[:whole])]


def _element_text(element: UsedElement | None) -> str:
    return "none" if element is None else f"{element.head} with {element.length} bytes written"
