# SPDX-License-Identifier: Apache-2.0
"""Guest-physical memory for device models: gpa ranges over host buffers."""

from collections.abc import Iterable
from typing import final

from typing_extensions import Buffer

class GuestAddressError(ValueError):
    """An address range that is not wholly inside guest RAM.

    `gpa` is its guest-physical start and `length` its size in bytes.
    """

    gpa: int
    length: int
    def __init__(self, gpa: int, length: int) -> None: ...

@final
class GuestMemory:
    """Guest-physical RAM as device models see it: disjoint regions of host memory, sorted by gpa.

    `regions` are (gpa, buffer) pairs in any order. A buffer is writable and contiguous, such as
    an `mmap` or a `bytearray`; its host address is a multiple of 16, its gpa and its size are
    multiples of 4096 and its end is below 2**52. ValueError when not so, or when regions overlap;
    TypeError (or BufferError) for an object without such a buffer.

    The buffers stay exported for the life of this object: an `mmap` cannot be closed and a
    `bytearray` cannot be resized meanwhile (both say BufferError). Every method may be called
    while guest code changes the memory. Copies of 256 KiB and more release the GIL.
    """

    def __init__(self, regions: Iterable[tuple[int, Buffer]]) -> None: ...
    @property
    def size_bytes(self) -> int:
        """All regions together, in bytes."""

    @property
    def regions(self) -> tuple[tuple[int, int], ...]:
        """(gpa, size in bytes) of every region, ascending."""

    @property
    def page_ranges(self) -> tuple[tuple[int, int], ...]:
        """(start_pfn, count) of every region in 4 KiB page frames, ascending."""

    def read(self, gpa: int, length: int) -> bytes:
        """Copy `length` bytes at `gpa` out of guest RAM, each byte read exactly once.

        The range may cross from one region to the next where they touch in guest-physical
        address space. GuestAddressError when any byte of it is not RAM (an empty range always is
        RAM); ValueError for a negative length.
        """

    def write(self, gpa: int, data: Buffer) -> None:
        """Copy the bytes of `data` into guest RAM at `gpa`; same errors as `read`."""

    def log_dirty_pages(self, on: bool) -> None:
        """Begin, with nothing in the log, or stop to log which pages this process changes.

        What is logged are writes and discards through this object and objects made of it, such as
        rings; not what the guest writes itself. A log that is on stays as it is.
        """

    def take_dirty_pages(self) -> list[tuple[int, bytes]]:
        """Pages changed since logging began or since the last call, as a bitmap for each region.

        Each is (start_pfn, bitmap), for `PageRuns.from_bitmap`. A change that is being made during
        the call may be in the next one only. ValueError when changes are not being logged.
        """
