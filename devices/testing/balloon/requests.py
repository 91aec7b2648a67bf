# SPDX-License-Identifier: Apache-2.0
"""Requests as balloon drivers of both dialects put them together, right or deliberately wrong."""

from __future__ import annotations

import struct
from collections.abc import Iterable


def pfn_array(pfns: Iterable[int]) -> bytes:
    """Request of the standard balloon dialect (5.5.6)."""
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
    """Request of the bitmap dialect: header, then the bitmap in pieces of at most 32 KiB."""
    wanted = sorted(pfns)
    start = (wanted[0] // 64 * 64 if wanted else 0) if start_pfn is None else start_pfn
    bitmap = bytearray(((wanted[-1] - start) // 64 + 1) * 8 if wanted else 0)
    for pfn in wanted:
        bitmap[(pfn - start) // 8] |= 1 << (pfn - start) % 8
    length = len(bitmap) if bmap_len is None else bmap_len
    header = struct.pack("<HHHHQQQ", cmd, page_shift, flag, reserved, req_id, start, length)
    supplied = bytes(bitmap)
    if supplied_bytes is not None:
        supplied = supplied.ljust(supplied_bytes, b"\0")[:supplied_bytes]
    step = 32 * 1024
    return [header, *(supplied[i : i + step] for i in range(0, len(supplied), step))]
