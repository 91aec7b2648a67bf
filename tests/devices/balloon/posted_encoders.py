# SPDX-License-Identifier: Apache-2.0
"""The encoders of the drivers that were posted in 2016, faults included.

They scan bitmaps of up to 262,144 pages, which begin at a multiple of 64. Version 5 sends the first
and the last word of a run as bitmaps unless the run fills them, with all bits of the word, and
continues after the word; the full words between become blocks of 2**n pages. Version 6 sends each
run as a range. A message is sent before its buffer of 32 KiB is full.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

BUFFER_WORDS = 32 * 1024 // 8
WINDOW_PAGES = 32 * 1024 * 8
WORD = 64


def hybrid_messages(pfns: Iterable[int]) -> list[list[int]]:
    """Return the records of each message that version 5 sends for these pages."""
    messages: list[list[int]] = []
    records: list[int] = []
    for base, bits in windows(pfns):
        at = 0
        while bits >> at:
            if len(records) + WORD > BUFFER_WORDS:
                messages.append(records)
                records = []
            at += trailing_zeros(bits >> at)
            end = at + trailing_zeros(~(bits >> at))
            records += hybrid_run(base, bits, at, end)
            at = rounded_up(end)
    return [*messages, records] if records else messages


def hybrid_run(base: int, bits: int, start: int, end: int) -> Iterator[int]:
    """Generate the records of one run: its first word, its last one, then its blocks."""
    first, last = start, end
    if start % WORD:
        first = rounded_up(start)
        yield from short_bitmap(base, bits, first - WORD)
        if first >= end:
            return
    if end % WORD:
        last = end // WORD * WORD
        yield from short_bitmap(base, bits, last)
    while first < last:
        order = (last - first).bit_length() - 1
        yield base + first | (12 + order) << 52
        first += 1 << order


def short_bitmap(base: int, bits: int, word: int) -> tuple[int, int]:
    return base + word | 12 << 52 | 8 << 58, bits >> word & (1 << WORD) - 1


def range_messages(pfns: Iterable[int]) -> list[list[int]]:
    """Return the records of each message that version 6 sends for these pages."""
    messages: list[list[int]] = []
    records: list[int] = []
    for base, bits in windows(pfns):
        at = 0
        while bits >> at:
            at += trailing_zeros(bits >> at)
            pages = trailing_zeros(~(bits >> at))
            if len(records) + 2 > BUFFER_WORDS:
                messages.append(records)
                records = []
            first = base + at << 12
            records += [first, pages] if pages > 4096 else [first | pages]
            at += pages
    return [*messages, records] if records else messages


def free_list_records(blocks: Iterable[tuple[int, int]]) -> list[int]:
    """Return version 5's records of free blocks (pfn, order), from the largest order down."""
    return [pfn | (12 + order) << 52 for pfn, order in sorted(blocks, key=lambda block: -block[1])]


def windows(pfns: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Generate (first page, bits) of the bitmaps that the drivers fill and scan in turn."""
    pages = sorted(set(pfns))
    first = pages[0] // WORD * WORD if pages else 0
    bitmaps: dict[int, bytearray] = {}
    for pfn in pages:
        index, at = divmod(pfn - first, WINDOW_PAGES)
        bitmaps.setdefault(index, bytearray(WINDOW_PAGES // 8))[at // 8] |= 1 << at % 8
    for index, bits in bitmaps.items():
        yield first + index * WINDOW_PAGES, int.from_bytes(bits, "little")


def trailing_zeros(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


def rounded_up(at: int) -> int:
    return -(-at // WORD) * WORD
