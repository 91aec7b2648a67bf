# SPDX-License-Identifier: Apache-2.0
"""Pages of guest RAM seen from outside: which are there, which hold anything, checksums."""

from typing_extensions import Buffer

from pyvmm_native.memory import GuestMemory
from pyvmm_native.runs import PageRuns

def crc32c(data: Buffer, crc: int = 0, *, by_table: bool = False) -> int:
    """CRC-32C (polynomial 0x1EDC6F41, RFC 3720) of `data`, without the GIL.

    `crc` is the checksum of the bytes before, for data that comes in pieces. `by_table` does
    without the processor's instruction, for tests.
    """

def touched(memory: GuestMemory, pages: PageRuns) -> PageRuns:
    """Those of `pages` that the host backs with memory or swap; the others read as zeros.

    Pages of private anonymous memory only. ValueError when one is not inside RAM, OSError when
    /proc/self/pagemap cannot be read. Releases the GIL.
    """

def nonzero(memory: GuestMemory, pages: PageRuns) -> PageRuns:
    """Those of `pages` that hold a byte other than 0. Releases the GIL.

    ValueError when one is not inside RAM. The guest should not be running: what it changes
    meanwhile is or is not seen.
    """

def bitmap(pages: PageRuns, start_pfn: int, count: int) -> bytes:
    """Which of the `count` frames from `start_pfn` on are in `pages`: the inverse of from_bitmap.

    `count` is a multiple of 8, both are below 2**52; ValueError otherwise.
    """
