# SPDX-License-Identifier: Apache-2.0
"""Guest RAM for tests.

`guest_memory` is ordinary process memory, for devices that only read and write. `AnonymousRam` is
for devices that discard pages: private anonymous memory, so that a discard has the effect it has in
production, and a record of every discard.
"""

from __future__ import annotations

import mmap

from pyvmm_native import PAGE_BYTES
from pyvmm_native.discard import discard
from pyvmm_native.memory import GuestMemory
from pyvmm_native.runs import PageRuns

DEFAULT_RAM_BYTES = 64 << 20
"""Size of an `AnonymousRam` without regions."""


def guest_memory(size_bytes: int, gpa: int = 0) -> GuestMemory:
    """Return RAM of one region of `size_bytes` at `gpa`, both multiples of 4096; no discards."""
    return GuestMemory([(gpa, bytearray(size_bytes))])


class AnonymousRam:
    """`devices.ports.GuestRam` over private anonymous memory.

    `regions` are (gpa, size in bytes), multiples of 4096; without any there are 64 MiB at address
    0. `host_page_pages` is the size of a host page as the device sees it, in 4 KiB pages. `maps`
    holds the (gpa, mmap) of each region, `memory` is their contents and `pages` all page frames.
    """

    def __init__(self, *regions: tuple[int, int], host_page_pages: int = 1) -> None:
        self.maps = [
            (gpa, mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
            for gpa, size_bytes in regions or [(0, DEFAULT_RAM_BYTES)]
        ]
        self.memory = GuestMemory(self.maps)
        self.pages = PageRuns(
            (gpa // PAGE_BYTES, len(area) // PAGE_BYTES) for gpa, area in self.maps
        )
        self.host_page_pages = host_page_pages
        self.discarded: list[PageRuns] = []
        """The page frames of each call of `discard`, in order."""
        self.restored: list[PageRuns] = []
        """The page frames of each call of `restore_backing`, in order."""

    def discard(self, runs: PageRuns) -> int:
        """Discard the pages of `runs`, which then read as zeros; return their size in bytes."""
        self.discarded.append(runs)
        return discard(self.memory, runs).bytes

    def restore_backing(self, runs: PageRuns) -> None:
        """Record the call; a page of this memory is always backed alike."""
        self.restored.append(runs)

    @property
    def discarded_pages(self) -> PageRuns:
        """All page frames discarded so far."""
        return PageRuns(run for runs in self.discarded for run in runs)
