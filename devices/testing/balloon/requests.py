# SPDX-License-Identifier: Apache-2.0
"""Messages of balloon drivers in every dialect, well formed or deliberately malformed."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from itertools import groupby

PIECE_BYTES = 32 * 1024
"""A bitmap or records lie in buffer elements of at most this size."""
MAX_BLOCK_ORDER = 18
"""The largest block of a record has 2**18 pages, 1 GiB."""
ALL_64 = (1 << 64) - 1
"""The bitmap of 64 pages that are all named."""


def pfn_array(pfns: Iterable[int]) -> bytes:
    """Return an inflate or deflate request of the standard dialect (VIRTIO 1.2, 5.5.6).

    `pfns` are 4 KiB page frame numbers below 2**32, each a little-endian u32 in the given order.
    """
    return b"".join(struct.pack("<I", pfn) for pfn in pfns)


def bitmap_request(
    pfns: Iterable[int],
    *,
    cmd: int = 0,
    page_shift: int = 12,
    flag: int = 0,
    reserved: int = 0,
    req_id: int = 0,
    start_pfn: int | None = None,
    bmap_len: int | None = None,
    supplied_bytes: int | None = None,
) -> list[bytes]:
    """Return a message of the bitmap dialect as buffer elements: the 32-byte header, the bitmap.

    `pfns` are numbers of pages of 2**`page_shift` bytes. The other arguments are fields of the
    header (`devices.balloon.bitmap`); `start_pfn` and `bmap_len` (bytes) fit the pages unless
    given. `supplied_bytes` is the size to which the bitmap is cut or padded with zeros.
    """
    pages = sorted(pfns)
    start = (pages[0] // 64 * 64 if pages else 0) if start_pfn is None else start_pfn
    bitmap = bytearray(((pages[-1] - start) // 64 + 1) * 8 if pages else 0)
    for pfn in pages:
        bitmap[(pfn - start) // 8] |= 1 << (pfn - start) % 8
    length = len(bitmap) if bmap_len is None else bmap_len
    header = struct.pack("<HHHHQQQ", cmd, page_shift, flag, reserved, req_id, start, length)
    supplied = bytes(bitmap)
    if supplied_bytes is not None:
        supplied = supplied.ljust(supplied_bytes, b"\0")[:supplied_bytes]
    return [header, *_pieces(supplied)]


def record_request(
    records: Iterable[int],
    *,
    cmd: int = 0,
    flag: int = 0,
    req_id: int = 0,
    data_len: int | None = None,
    supplied_bytes: int | None = None,
) -> list[bytes]:
    """Return a message of the hybrid or ranges dialect as buffer elements: 8-byte header, records.

    `records` are words of 64 bits. The other arguments are fields of the header
    (`devices.balloon.records`); `data_len` (bytes) fits the records unless given. `supplied_bytes`
    is the size to which the records are cut or padded with zeros.
    """
    data = b"".join(struct.pack("<Q", each) for each in records)
    length = len(data) if data_len is None else data_len
    header = struct.pack("<Q", cmd | flag << 8 | req_id << 16 | length << 32)
    if supplied_bytes is not None:
        data = data.ljust(supplied_bytes, b"\0")[:supplied_bytes]
    return [header, *_pieces(data)]


def hybrid_records(pfns: Iterable[int]) -> list[int]:
    """Return the records of the 4 KiB pages `pfns` in the hybrid dialect, ascending.

    Aligned words of 64 pages that are all named are merged to blocks of 2**n pages, wherever they
    begin; the others are bitmaps.
    """
    records: list[int] = []
    words: dict[int, int] = {}
    for pfn in pfns:
        words[pfn // 64] = words.get(pfn // 64, 0) | 1 << pfn % 64
    full = [word for word, bits in words.items() if bits == ALL_64]
    for start, count in page_runs(full):
        start, left = 64 * start, 64 * count
        while left:
            order = min(left.bit_length() - 1, MAX_BLOCK_ORDER)
            records.append(start | (12 + order) << 52)
            start, left = start + (1 << order), left - (1 << order)
    for word, bits in sorted(words.items()):
        if bits != ALL_64:
            records += [64 * word | 12 << 52 | 8 << 58, bits]
    return records


def range_records(pfns: Iterable[int]) -> list[int]:
    """Return the records of the 4 KiB pages `pfns` in the ranges dialect, ascending."""
    records: list[int] = []
    for start, count in page_runs(pfns):
        records += [start << 12 | count] if count < 4096 else [start << 12, count]
    return records


def page_runs(pfns: Iterable[int]) -> list[tuple[int, int]]:
    """Return (first, count) of each run of consecutive numbers, ascending."""
    groups = groupby(enumerate(sorted(set(pfns))), key=lambda pair: pair[1] - pair[0])
    runs = [[pfn for _, pfn in group] for _, group in groups]
    return [(run[0], len(run)) for run in runs]


def _pieces(data: bytes) -> list[bytes]:
    return [data[i : i + PIECE_BYTES] for i in range(0, len(data), PIECE_BYTES)]


def stats_payload(entries: Iterable[tuple[int, int]]) -> bytes:
    """Return a statistics report: packed `struct virtio_balloon_stat` (5.5.6.3).

    `entries` are (tag, value), a u16 and a u64.
    """
    return b"".join(struct.pack("<HQ", tag, value) for tag, value in entries)
