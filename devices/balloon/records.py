# SPDX-License-Identifier: Apache-2.0
"""Requests of the hybrid and ranges dialects: an 8-byte header, then 64-bit records.

The wire formats of the virtio-balloon extension in its versions 5 (`hybrid`, November 2016) and 6
(`ranges`, December 2016). Both begin with one little-endian u64:

    bits 0 to 7     cmd        command of the request; 0 on the inflate and deflate queues
    bits 8 to 15    flag       as in `devices.balloon.bitmap`
    bits 16 to 31   id         id of the request; 0 on the inflate and deflate queues
    bits 32 to 63   data_len   bytes of records; a multiple of 8

and continue with records, u64 each. In the hybrid dialect a record is a block of pages, or a bitmap
of 64 pages in the u64 after it (`PageRuns.from_hybrid_records`). Both start at any 4 KiB page: the
encoder of version 5 sends blocks of 2^n pages wherever their run of pages begins. In the ranges
dialect a record is a page and a number of pages, or has the number in the u64 after it
(`PageRuns.from_range_records`).

Decoding is strict wherever a mistake would name other memory. Pages may be in any order, but a page
is in the balloon or not: an inflate or deflate that names one twice is refused, as PFN arrays are
(`devices.balloon.dialects`). The encoders posted in 2016 scan a bitmap, so they cannot do that. A
response may: the guest's free lists change between two looks at them. Bytes after `data_len` are
ignored, as after a bitmap.

The encoder of version 6 has a fault: it puts a count of 4096 into the 12 bits of the short form,
which sets the lowest bit of the page frame number and leaves a count of 0. The next record is then
the count. If there is none, the record is truncated. Otherwise it is at least 4096 times the page
frame number of the next range. That number is above 4096, as the encoder scans upwards, so the
count is above 2^24, the largest that is accepted: such a request is refused in either case.

A driver of another dialect never gets as far as sending one: see `devices.balloon.features`.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import NamedTuple

from devices.balloon.messages import Message, pages_of
from devices.errors import BadPayload

HEADER = struct.Struct("<Q")
"""The header on the wire, 8 bytes."""
RECORD_BYTES = 8
"""Bytes of a record, or of one half of a record of two words."""
MAX_DATA_BYTES = 1 << 20
"""Most bytes of records in a message: 131,072 records."""
MAX_MESSAGE_BYTES = HEADER.size + MAX_DATA_BYTES
"""The longest message that is decoded."""
MAX_ID = (1 << 16) - 1
"""The largest id that the header can hold."""


class RecordHeader(NamedTuple):
    """Header fields as the driver sent them, unchecked.

    In order: `cmd`, `flag`, `id`, `data_len`; the module gives their meaning.
    """

    cmd: int
    flag: int
    id: int
    data_len: int


def read_header(payload: bytes) -> RecordHeader:
    """Return the header of a message, unchecked; raises BadPayload if it is truncated."""
    if len(payload) < HEADER.size:
        raise BadPayload(f"{len(payload)} bytes are too short for a header")
    (fields,) = HEADER.unpack_from(payload)
    return RecordHeader(fields & 0xFF, fields >> 8 & 0xFF, fields >> 16 & 0xFFFF, fields >> 32)


def read_hybrid(payload: bytes) -> Message:
    """As `ResponseFormat.read`, in the hybrid dialect."""
    return _read("hybrid", payload)


def read_ranges(payload: bytes) -> Message:
    """As `ResponseFormat.read`, in the ranges dialect."""
    return _read("ranges", payload)


def _read(dialect: str, payload: bytes) -> Message:
    cmd, flag, request_id, data_len = read_header(payload)
    decode = partial(pages_of, dialect, payload, is_request=False)
    return Message(cmd, flag, request_id, data_len, decode)
