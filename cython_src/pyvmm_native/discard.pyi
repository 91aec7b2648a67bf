# SPDX-License-Identifier: Apache-2.0
"""Giving guest memory back to the host."""

from typing import NamedTuple

from pyvmm_native.memory import GuestMemory
from pyvmm_native.runs import PageRuns

class Discarded(NamedTuple):
    """What one `discard` did."""

    bytes: int
    """Bytes whose contents were discarded, whether or not they were resident before."""
    calls: int
    """System calls it took."""

def discard(memory: GuestMemory, runs: PageRuns) -> Discarded:
    """Free the host memory behind `runs`; the guest reads zeros there until it writes again.

    Returns when the memory is free. Ranges go to the kernel 1024 at a time where
    `have_process_madvise`, one at a time elsewhere, without the GIL. ValueError, with nothing
    discarded, when a run is not wholly inside RAM, or when a region of `memory` is not private
    anonymous memory at page-aligned host addresses (a `bytearray`, a file, a shared mapping:
    note that `mmap.mmap(-1, n)` is shared unless given `flags=mmap.MAP_PRIVATE`). OSError when
    the kernel refuses a range (locked memory, for one); ranges before it are discarded then.
    """

def have_process_madvise() -> bool:
    """Whether process_madvise(2) discards our own memory here; found out by doing it, once."""

def private_anonymous_ranges() -> list[tuple[int, int]]:
    """Host address ranges [start, end) of this process that discarding would free, ascending."""

def is_within(ranges: list[tuple[int, int]], start: int, end: int) -> bool:
    """Whether ascending, disjoint `ranges` cover [start, end) without a gap."""
