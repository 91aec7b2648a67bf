# SPDX-License-Identifier: Apache-2.0
"""Exercise of chapter 7: a driver that sends its buffers through indirect tables.

`IndirectDriver` takes one descriptor of the queue for each buffer, however many elements the buffer
has, and puts the elements into a table of its own (VIRTIO 1.2, 2.7.5.3). It has a bug: buffers of
one element arrive, longer ones do not. Find it and mend it.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from devices.testing import DriverQueue

NEXT, WRITE, INDIRECT = 1, 2, 4
"""Flags of a descriptor (2.7.5)."""
DESCRIPTOR = struct.Struct("<QIHH")
"""A descriptor: addr, len, flags, next."""


class Element(NamedTuple):
    """`length` bytes of memory at `gpa`, which the device reads or, if `writable`, writes."""

    gpa: int
    length: int
    writable: bool = False


class IndirectDriver:
    """The driver's side of `queue`.

    Of `queue` it uses the fields in guest memory only: `place` copies bytes into guest memory and
    returns their address, `set_desc`, `set_avail_ring` and `set_avail_idx` write the rings.
    """

    def __init__(self, queue: DriverQueue) -> None:
        self.queue = queue
        self.free = list(range(queue.size))
        self.next_avail = 0

    def add(self, elements: list[Element]) -> int:
        """Make a buffer of `elements` available; return the index of its head descriptor."""
        table = self.indirect_table(elements)
        flags = INDIRECT
        if len(elements) > 1:
            flags |= NEXT
        head = self.free.pop(0)
        self.queue.set_desc(head, self.queue.place(table), len(table), flags)
        self.queue.set_avail_ring(self.next_avail, head)
        self.next_avail += 1
        self.queue.set_avail_idx(self.next_avail)
        return head

    def indirect_table(self, elements: list[Element]) -> bytes:
        """Return the table of descriptors that chains `elements` in order."""
        table = b""
        last = len(elements) - 1
        for index, element in enumerate(elements):
            flags = WRITE if element.writable else 0
            following = 0
            if index < last:
                flags |= NEXT
                following = index + 1
            table += DESCRIPTOR.pack(element.gpa, element.length, flags, following)
        return table
