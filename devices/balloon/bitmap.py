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

Requests on the inflate and deflate queues are decoded by `pyvmm_native.page_requests`;
`read_message` reads messages on the misc queue, which `devices.balloon.misc` interprets.

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

from devices.balloon.messages import Message, pages_of
from devices.errors import BadPayload

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


def read_header(payload: bytes) -> BitmapHeader:
    """Return the header of a message, unchecked; raises BadPayload if it is truncated."""
    if len(payload) < HEADER.size:
        raise BadPayload(f"{len(payload)} bytes are too short for a bitmap header")
    return BitmapHeader._make(HEADER.unpack_from(payload))


def read_message(payload: bytes) -> Message:
    """As `ResponseFormat.read`."""
    header = read_header(payload)
    decode = partial(pages_of, "bitmap", payload, is_request=False)
    return Message(header.cmd, header.flag, header.req_id, header.bmap_len, decode)
