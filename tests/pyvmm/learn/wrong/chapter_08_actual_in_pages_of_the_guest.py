# SPDX-License-Identifier: Apache-2.0
"""Names the right pages, but reports `actual` in pages of the guest."""

from __future__ import annotations

import struct

from devices.testing import VirtioDriver

INFLATE, DEFLATE = 0, 1
"""Queue numbers (5.5.2)."""
NUM_PAGES, ACTUAL = 0, 4
"""Offsets of fields in the configuration space (5.5.4)."""

GUEST_PAGE_BYTES = 16384
"""Size of a page of this guest."""
PFNS_PER_PAGE = GUEST_PAGE_BYTES // 4096
"""Numbers that name one page of the guest."""


class LargePageDriver:
    """Drives the balloon through `registers`.

    `free` are the guest-physical addresses of the guest's free pages, `balloon` those of the pages
    in the balloon. Every page is in one of the lists, or in use by the guest.
    """

    def __init__(self, registers: VirtioDriver, free: list[int]) -> None:
        self.registers = registers
        self.free = free
        self.balloon: list[int] = []

    def resize(self) -> None:
        """Make the balloon as large as the device requests."""
        target = self.registers.read_config(NUM_PAGES) // PFNS_PER_PAGE
        missing = target - len(self.balloon)
        if missing > 0:
            self.inflate(missing)
        elif missing < 0:
            self.deflate(-missing)
        self.registers.write_config(ACTUAL, 4, len(self.balloon))

    def inflate(self, count: int) -> None:
        """Give `count` free pages of the guest to the device."""
        pages, self.free = self.free[:count], self.free[count:]
        self.registers.send(INFLATE, [self.pfn_array(pages)])
        self.balloon += pages

    def deflate(self, count: int) -> None:
        """Take `count` pages of the guest back, and free them once the device knows."""
        self.balloon, pages = self.balloon[:-count], self.balloon[-count:]
        self.registers.send(DEFLATE, [self.pfn_array(pages)])
        self.free += pages

    def pfn_array(self, pages: list[int]) -> bytes:
        """Return the request that names `pages`, guest-physical addresses."""
        array = b""
        for gpa in pages:
            first = gpa // 4096
            for pfn in range(first, first + PFNS_PER_PAGE):
                array += struct.pack("<I", pfn)
        return array
