# SPDX-License-Identifier: Apache-2.0
"""The meaning of the bytes of a buffer, for people.

A device type can describe its buffers: a function in `devices/<name>/description.py`, which the
catalogue names, gets the bytes of a buffer and returns the fields in them. It is pure: it has no
device and no memory, so it describes buffers of a live guest, of a recording or of a test alike.
The bytes may be the first part of a buffer only, and the guest may have written anything: such a
function never raises, and its result is bounded (`bounded`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Literal, NamedTuple

MAX_FIELDS = 64
"""Most fields of a description."""
MAX_VALUE_CHARACTERS = 200
"""Most characters of a value; a longer one is cut."""

Part = Literal["readable", "writable"]
"""A part of a buffer: the bytes that the device reads, or those that it writes."""


class BufferBytes(NamedTuple):
    """The first bytes of a buffer, and what is needed to understand them."""

    queue: str
    """The name of its queue."""
    readable: bytes
    """Of the device-readable part."""
    writable: bytes
    """Of the device-writable part, as it is at the moment."""
    features: int
    """The features that the driver has accepted."""
    properties: Mapping[str, str]
    """The values of `VirtioDevice.compatibility_key`, such as the balloon's dialect."""


class Described(NamedTuple):
    """One field of a buffer."""

    part: Part
    offset: int
    """Bytes from the start of the part."""
    length: int
    """Its bytes; 0 for a remark about the part."""
    name: str
    """The name of the field, as in the specification."""
    value: str
    """Its value, in words."""
    clause: str
    """The specification, such as `VIRTIO 1.2, 5.5.6`."""


Describe = Callable[[BufferBytes], list[Described]]
"""Returns the fields of a buffer, in order."""


def bounded(fields: Iterable[Described]) -> list[Described]:
    """Return the first `MAX_FIELDS` of `fields`, with values of a bounded length."""
    return [
        field._replace(value=field.value[:MAX_VALUE_CHARACTERS])
        for field in islice(fields, MAX_FIELDS)
    ]


def unpacked(
    part: Part,
    data: bytes,
    layout: struct.Struct,
    fields: Iterable[tuple[str, int, str]],
    clause: str,
) -> Iterator[Described]:
    """Yield the (name, length, value format) `fields` of a header, or that it is too short.

    `layout` is the header's, one number for each field; offsets follow from the lengths.
    """
    if len(data) < layout.size:
        yield Described(part, 0, len(data), "header", f"only {len(data)} bytes", clause)
        return
    offset = 0
    for (name, length, shown), value in zip(fields, layout.unpack_from(data), strict=True):
        yield Described(part, offset, length, name, shown.format(value), clause)
        offset += length
