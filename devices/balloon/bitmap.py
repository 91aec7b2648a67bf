# SPDX-License-Identifier: Apache-2.0
"""Requests of the bitmap dialect: a 32-byte header, then one bit for each page.

The wire format of the virtio-balloon bitmap extension ("RESEND PATCH v3", October 2016), all
little-endian:

    u16 cmd          command of the request; 0 on the inflate and deflate queues
    u16 page_shift   log2 of the page size, 12 or more
    u16 flag         on the misc queue CONT, DONE or UNSUPPORTED; 0 on the others
    u16 reserved
    u64 req_id       id of the request; 0 on the inflate and deflate queues
    u64 start_pfn    page (in units of the page size) of bit 0; a multiple of 64
    u64 bmap_len     bytes of bitmap; a multiple of 8

`decode` reads requests on the inflate and deflate queues, `read_message` messages on the misc
queue, which `devices.balloon.misc` interprets.

Decoding is strict wherever a mistake would name other memory: an unknown command or flag, an
impossible page size, a bitmap shorter than announced. It is tolerant where pages do not depend on
it: `reserved` and `req_id` are ignored, and so are bytes after the announced bitmap, because
drivers send whole 32 KiB bitmap buffers and the boundaries of descriptors carry no meaning (VIRTIO
1.2, 2.7.4.1).

A stock driver that is offered PAGE_BITMAP mistakes it for FREE_PAGE_HINT, accepts it and sends PFN
arrays (`devices.balloon.dialects`). None of them is a request that names a page of RAM: `bmap_len`
is at most `MAX_BITMAP_BYTES` and `start_pfn` below the end of RAM, so the high halves of both are
0; read as an array these are PFN 0, twice, and an array names each page once. The same two zeros
prevent a request of this dialect from being read as an array.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import NamedTuple

from devices.balloon.messages import Message
from devices.errors import BadPayload
from pyvmm_native.runs import PageRuns

HEADER = struct.Struct("<HHHHQQQ")
"""The header on the wire, 32 bytes."""
MAX_BITMAP_BYTES = 32 * 32 * 1024
"""32 bitmap buffers of 32 KiB: 32 GiB of 4 KiB pages."""
MAX_REQUEST_BYTES = HEADER.size + MAX_BITMAP_BYTES
"""The longest request that is decoded."""
MAX_ID = (1 << 64) - 1
"""The largest id that the header can hold."""

PAGE_SHIFT = 12
"""The page size in which `PageRuns` count, 4 KiB."""
MAX_PAGE_SHIFT = 30
"""The largest page with which a guest architecture maps memory, 1 GiB."""
MAX_PFN = 1 << 52
"""First 4 KiB page frame beyond what `PageRuns` and a 64-bit address can name."""


class BitmapHeader(NamedTuple):
    """Header fields as the driver sent them, unchecked.

    In order: `cmd`, `page_shift`, `flag`, `reserved`, `req_id`, `start_pfn`, `bmap_len`; the module
    gives their meaning.
    """

    cmd: int
    page_shift: int
    flag: int
    reserved: int
    req_id: int
    start_pfn: int
    bmap_len: int


def decode(payload: bytes) -> PageRuns:
    """Return the pages whose bit is set in an inflate or deflate request, in 4 KiB frames.

    Raises BadPayload if the request violates the format.
    """
    header = read_header(payload)
    if header.cmd:
        raise BadPayload(f"unknown command {header.cmd}")
    if header.flag:
        raise BadPayload(f"unknown flag {header.flag:#x}")
    return pages_of(header, payload)


def read_header(payload: bytes) -> BitmapHeader:
    """Return the header of a message, unchecked; raises BadPayload if it is truncated."""
    if len(payload) < HEADER.size:
        raise BadPayload(f"{len(payload)} bytes are too short for a bitmap header")
    return BitmapHeader._make(HEADER.unpack_from(payload))


def read_message(payload: bytes) -> Message:
    """As `ResponseFormat.read`."""
    header = read_header(payload)
    decode = partial(pages_of, header, payload)
    return Message(header.cmd, header.flag, header.req_id, header.bmap_len, decode)


def pages_of(header: BitmapHeader, payload: bytes) -> PageRuns:
    """Return the pages whose bit is set after `header`, in 4 KiB frames; raises BadPayload."""
    why = _violation(header, len(payload) - HEADER.size)
    if why is not None:
        raise BadPayload(why)
    bits = memoryview(payload)[HEADER.size : HEADER.size + header.bmap_len]
    runs = PageRuns.from_bitmap(bits, header.start_pfn)
    return runs.scaled(1 << (header.page_shift - PAGE_SHIFT))


def _violation(header: BitmapHeader, supplied_bytes: int) -> str | None:
    """Return how `header` violates the format, if it does; checked before any page is decoded."""
    if not PAGE_SHIFT <= header.page_shift <= MAX_PAGE_SHIFT:
        return f"page_shift {header.page_shift} is not a page size"
    if header.start_pfn % 64:
        return f"start_pfn {header.start_pfn:#x} is not a multiple of 64"
    if header.bmap_len == 0 or header.bmap_len % 8:
        return f"bmap_len {header.bmap_len} is not a positive multiple of 8"
    if header.bmap_len > supplied_bytes:
        return f"bmap_len {header.bmap_len} but only {supplied_bytes} bytes supplied"
    end = header.start_pfn + header.bmap_len * 8
    if end << (header.page_shift - PAGE_SHIFT) > MAX_PFN:
        return f"start_pfn {header.start_pfn:#x} is beyond any address"
    return None
