# SPDX-License-Identifier: Apache-2.0
"""Solution of chapter 4: the driver's side of a split virtqueue.

The used ring names a buffer by its head. All descriptors of that buffer become free, and they need
not be neighbours in the table.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pyvmm_native.memory import GuestMemory

NEXT, WRITE = 1, 2
"""Flags of a descriptor (2.7.5)."""
DESCRIPTOR = struct.Struct("<QIHH")
"""A descriptor: addr, len, flags, next."""
USED_ELEMENT = struct.Struct("<II")
"""An element of the used ring: id, len (2.7.8)."""


class Element(NamedTuple):
    """`length` bytes of memory at `gpa`, which the device reads or, if `writable`, writes."""

    gpa: int
    length: int
    writable: bool = False


class SplitDriver:
    """The driver's side of a split virtqueue of `size` entries in `memory` (2.7)."""

    def __init__(
        self, memory: GuestMemory, size: int, desc_gpa: int, avail_gpa: int, used_gpa: int
    ) -> None:
        self.memory, self.size = memory, size
        self.desc_gpa, self.avail_gpa, self.used_gpa = desc_gpa, avail_gpa, used_gpa
        self.free = list(range(size))
        """Descriptors that belong to no buffer."""
        self.chains: dict[int, list[int]] = {}
        """The descriptors of each buffer that the device has, by its first one, the head."""
        self.next_avail = 0
        self.last_used = 0

    def add(self, elements: list[Element]) -> int:
        """Make a buffer of `elements` available; return its head.

        IndexError, without an effect, if there are too few free descriptors.
        """
        if len(elements) > len(self.free):
            raise IndexError("too few free descriptors")
        chain = [self.free.pop(0) for _ in elements]
        for position, (index, element) in enumerate(zip(chain, elements, strict=True)):
            flags = WRITE if element.writable else 0
            following = 0
            if position < len(chain) - 1:
                flags |= NEXT
                following = chain[position + 1]
            data = DESCRIPTOR.pack(element.gpa, element.length, flags, following)
            self.memory.write(self.desc_gpa + 16 * index, data)
        self.chains[chain[0]] = chain
        self.write16(self.avail_gpa + 4 + 2 * (self.next_avail % self.size), chain[0])
        self.next_avail = (self.next_avail + 1) & 0xFFFF
        self.write16(self.avail_gpa + 2, self.next_avail)
        return chain[0]

    def take_used(self) -> list[tuple[int, int]]:
        """Take back the buffers that the device has returned: (head, bytes written) of each."""
        taken = []
        while self.last_used != self.read16(self.used_gpa + 2):
            slot = self.used_gpa + 4 + 8 * (self.last_used % self.size)
            head, length = USED_ELEMENT.unpack(self.memory.read(slot, 8))
            self.last_used = (self.last_used + 1) & 0xFFFF
            self.free += self.chains.pop(head)
            taken.append((head, length))
        return taken

    def read16(self, gpa: int) -> int:
        """Return the 16-bit number at `gpa`."""
        return int.from_bytes(self.memory.read(gpa, 2), "little")

    def write16(self, gpa: int, value: int) -> None:
        """Write a 16-bit number to `gpa`."""
        self.memory.write(gpa, value.to_bytes(2, "little"))
