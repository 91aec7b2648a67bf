# SPDX-License-Identifier: Apache-2.0
"""Messages of balloon drivers in both dialects, well formed or deliberately malformed."""

from __future__ import annotations

import struct
from collections.abc import Iterable

BITMAP_PIECE_BYTES = 32 * 1024
"""A bitmap lies in buffer elements of at most this size."""


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
    step = BITMAP_PIECE_BYTES
    return [header, *(supplied[i : i + step] for i in range(0, len(supplied), step))]


def stats_payload(entries: Iterable[tuple[int, int]]) -> bytes:
    """Return a statistics report: packed `struct virtio_balloon_stat` (5.5.6.3).

    `entries` are (tag, value), a u16 and a u64.
    """
    return b"".join(struct.pack("<HQ", tag, value) for tag, value in entries)
