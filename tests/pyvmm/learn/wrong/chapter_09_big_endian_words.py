# SPDX-License-Identifier: Apache-2.0
"""Takes the bitmap for big-endian words of 64 bits."""

from __future__ import annotations

import struct
from collections.abc import Iterable

HEADER = struct.Struct("<HHHHQQQ")
"""cmd, page_shift, flag, reserved, req_id, start_pfn, bmap_len."""
PAGE_SHIFT = 12
"""Pages of 4 KiB."""


def inflate_request(pfns: Iterable[int]) -> bytes:
    """Return the request that puts the pages `pfns`, at least one, in the balloon."""
    pages = sorted(pfns)
    start_pfn = pages[0] // 64 * 64
    words = (pages[-1] - start_pfn) // 64 + 1
    bitmap = bytearray(8 * words)
    for pfn in pages:
        word, bit = divmod(pfn - start_pfn, 64)
        value = int.from_bytes(bitmap[8 * word : 8 * word + 8], "big") | 1 << bit
        bitmap[8 * word : 8 * word + 8] = value.to_bytes(8, "big")
    return HEADER.pack(0, PAGE_SHIFT, 0, 0, 0, start_pfn, len(bitmap)) + bytes(bitmap)
