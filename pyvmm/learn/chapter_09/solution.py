# SPDX-License-Identifier: Apache-2.0
"""Solution of chapter 9: the driver's side of the bitmap protocol of 2016.

`inflate_request` names pages by one bit each. Bit 0 is the least significant of its byte, as in the
bitmaps of Linux on little-endian processors.
"""

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
        byte, bit = divmod(pfn - start_pfn, 8)
        bitmap[byte] |= 1 << bit
    return HEADER.pack(0, PAGE_SHIFT, 0, 0, 0, start_pfn, len(bitmap)) + bytes(bitmap)
