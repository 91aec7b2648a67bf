# SPDX-License-Identifier: Apache-2.0
"""A reference decoder: the pages that a request names, in slow and plain Python.

Written from the wire formats (VIRTIO 1.2, 5.5.6; the extension of 2016), not from the product. None
stands for a request that a device must refuse as a whole.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

from pyvmm_native import PAGE_BYTES

Pages = frozenset[int]
Spans = list[tuple[int, int]]
"""(first page, number of pages) in the order in which they are named, repetitions included."""

ADDRESSES = 1 << 52


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


def hybrid_spans(words: list[int]) -> Spans | None:
    """Return the pages that records of blocks and 64-page bitmaps name."""
    spans: Spans = []
    left = iter(words)
    for record in left:
        start, shift, length = record % ADDRESSES, record >> 52 & 63, record >> 58
        if not 12 <= shift <= 30 or length not in (0, 8):
            return None
        small = 2 ** (shift - 12)
        bits = 1 if length == 0 else next(left, None)
        if bits is None or start + small * (64 if length else 1) > ADDRESSES:
            return None
        spans += [(start + bit * small, small) for bit in range(64) if bits >> bit & 1]
    return spans


def range_spans(words: list[int]) -> Spans | None:
    """Return the pages that records of ranges name."""
    spans: Spans = []
    left = iter(words)
    for record in left:
        start, count = divmod(record, 4096)
        if count == 0:
            count = next(left, 0)
            if not 4096 <= count <= 1 << 24:
                return None
        if start + count > ADDRESSES:
            return None
        spans.append((start, count))
    return spans


def named_by_hybrid(payload: bytes, ram: Pages) -> Pages | None:
    """Decode a request of the hybrid dialect."""
    return _named_by_records(payload, ram, hybrid_spans)


def named_by_ranges(payload: bytes, ram: Pages) -> Pages | None:
    """Decode a request of the ranges dialect."""
    return _named_by_records(payload, ram, range_spans)


def _named_by_records(
    payload: bytes, ram: Pages, spans_of: Callable[[list[int]], Spans | None]
) -> Pages | None:
    """Decode a header and records on the inflate or deflate queue: no page twice, all RAM."""
    if len(payload) < 8:
        return None
    kind, length = struct.unpack("<II", payload[:8])
    if kind or not length or length % 8 or not 8 + length <= len(payload) <= 8 + (1 << 20):
        return None
    spans = spans_of(list(struct.unpack_from(f"<{length // 8}Q", payload, 8)))
    if spans is None or sum(count for _, count in spans) > len(ram):
        return None
    pages = [pfn for start, count in spans for pfn in range(start, start + count)]
    return frozenset(pages) if len(set(pages)) == len(pages) and ram.issuperset(pages) else None


NAMED_BY: dict[str, Callable[[bytes, Pages], Pages | None]] = {
    "standard": named_by_pfns,
    "bitmap": named_by_bitmap,
    "hybrid": named_by_hybrid,
    "ranges": named_by_ranges,
}
"""The decoder of each dialect."""


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
