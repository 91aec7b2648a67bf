# SPDX-License-Identifier: Apache-2.0

from typing_extensions import Buffer

from pyvmm_native.memory import GuestMemory

BLOCK_PAGES: int
"""Pages of a block: 512, 2 MiB."""

class ChecksumError(ValueError): ...

def store_block(
    memory: GuestMemory,
    first_pfn: int,
    bitmap: Buffer,
    fd: int,
    offset: int,
    *,
    write_behind: bool = False,
) -> int: ...
def punch_hole(fd: int, offset: int, length: int) -> None: ...
def load_block(
    memory: GuestMemory, first_pfn: int, bitmap: Buffer, fd: int, offset: int, crc: int
) -> None: ...
def check_stored(first_pfn: int, bitmap: Buffer, fd: int, offset: int, crc: int) -> None: ...
def gather_block(memory: GuestMemory, first_pfn: int, bitmap: Buffer, target: Buffer) -> int: ...
def scatter_block(memory: GuestMemory, first_pfn: int, bitmap: Buffer, source: Buffer) -> None: ...
