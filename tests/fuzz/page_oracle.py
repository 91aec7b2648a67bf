# SPDX-License-Identifier: Apache-2.0
"""A reference decoder: the pages that a request names, in slow and plain Python.

Written from the wire formats (VIRTIO 1.2, 5.5.6; the bitmap extension of 2016), not from the
product. None stands for a request that a device must refuse as a whole.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from pyvmm_native import PAGE_BYTES

Pages = frozenset[int]


def pages_of_regions(regions: Iterable[tuple[int, int]]) -> Pages:
    return frozenset(
        page
        for gpa, size_bytes in regions
        for page in range(gpa // PAGE_BYTES, (gpa + size_bytes) // PAGE_BYTES)
    )


def named_by_pfns(payload: bytes, ram: Pages) -> Pages | None:
    """Decode a PFN array: at least one page, no page twice, all of them RAM."""
    if not payload or len(payload) % 4 or len(payload) > 256 * 1024:
        return None
    pfns = struct.unpack(f"<{len(payload) // 4}I", payload)
    pages = frozenset(pfns)
    return pages if pages <= ram and len(pages) == len(pfns) else None


def named_by_bitmap(payload: bytes, ram: Pages) -> Pages | None:
    """Decode a header and a bitmap on the inflate or deflate queue."""
    if len(payload) < 32:
        return None
    cmd, shift, flag, _, _, start, length = struct.unpack("<HHHHQQQ", payload[:32])
    if cmd or flag:
        return None
    return _bitmap_pages(shift, start, length, payload[32:], ram)


def _bitmap_pages(shift: int, start: int, length: int, rest: bytes, ram: Pages) -> Pages | None:
    if not 12 <= shift <= 30 or start % 64 or not length or length % 8 or length > len(rest):
        return None
    small = 1 << shift - 12  # 4 KiB pages for each bit
    if (start + 8 * length) * small > 1 << 52:
        return None
    bits = int.from_bytes(rest[:length], "little")
    if bits.bit_count() * small > len(ram):
        return None
    pages: set[int] = set()
    while bits:
        bit = (bits & -bits).bit_length() - 1
        pages.update(range((start + bit) * small, (start + bit + 1) * small))
        bits &= bits - 1
    return frozenset(pages) if pages <= ram else None


def wholly_inside(segments: Iterable[tuple[int, int]]) -> Pages:
    """Return the pages that the (gpa, length) segments cover completely."""
    pages: set[int] = set()
    start = end = 0
    for gpa, length in sorted(segments):
        if gpa > end:
            start = gpa
        end = max(end, gpa + length)
        pages.update(range(-(-start // PAGE_BYTES), end // PAGE_BYTES))
    return frozenset(pages)


def touched_by(segments: Iterable[tuple[int, int]]) -> Pages:
    """Return the pages of which at least one byte lies in a (gpa, length) segment."""
    return frozenset(
        page
        for gpa, length in segments
        if length
        for page in range(gpa // PAGE_BYTES, (gpa + length - 1) // PAGE_BYTES + 1)
    )
