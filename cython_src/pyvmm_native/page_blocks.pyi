# SPDX-License-Identifier: Apache-2.0
"""Blocks of 512 guest pages between RAM and a file or a message.

`first_pfn` is the block's first page frame, a multiple of 512. `bitmap`, 64 bytes, has a bit for
each of its pages, bit 0 of byte 0 for the first: those are in the file or the message, one after
the other; in a file, from `offset` (bytes) on. `crc` is the CRC-32C of them all. Every function
releases the GIL.
"""

from typing_extensions import Buffer

from pyvmm_native.memory import GuestMemory

BLOCK_PAGES: int

class ChecksumError(ValueError):
    """Pages in the file are not what was written there."""

def store_block(memory: GuestMemory, first_pfn: int, bitmap: Buffer, fd: int, offset: int) -> int:
    """Write pages of guest RAM to the file `fd`; returns their checksum.

    OSError when they cannot be written. ValueError for a page outside RAM.
    """

def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give a stretch of the file `fd` (bytes) back to the disk; it reads as zeros, if it is read.

    On a file system without holes it stays as it is. Other errors are an OSError.
    """

def load_block(
    memory: GuestMemory, first_pfn: int, bitmap: Buffer, fd: int, offset: int, crc: int
) -> None:
    """Read pages into guest RAM, if their checksum is right.

    ChecksumError, with RAM unchanged, if not; OSError when they cannot be read, EIO where the file
    ends too early. ValueError for a page outside RAM.
    """

def check_stored(first_pfn: int, bitmap: Buffer, fd: int, offset: int, crc: int) -> None:
    """Read pages and check them as `load_block` does, without a guest. The same errors."""

def gather_block(memory: GuestMemory, first_pfn: int, bitmap: Buffer, target: Buffer) -> int:
    """Copy pages of guest RAM to the beginning of `target`; returns how many bytes those are.

    ValueError for a page outside RAM, and when there is no room.
    """

def scatter_block(memory: GuestMemory, first_pfn: int, bitmap: Buffer, source: Buffer) -> None:
    """Copy `source` into pages of guest RAM.

    ValueError for a page outside RAM, and for more or fewer bytes than those pages have.
    """
