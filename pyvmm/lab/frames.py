# SPDX-License-Identifier: Apache-2.0
"""Frames on the link between the lab and its host.

The link is one reliable byte stream (a virtio-serial port). It carries frames: an 8-byte
little-endian header `u8 type, u8 zero, u16 channel, u32 length` and `length` payload bytes. Bytes
go in, frames come out; nothing here reads or writes a file. A channel is a pair of byte streams,
one each way. The receiver of a stream grants credit for the bytes it has passed on, so that neither
side ever holds more than `WINDOW_BYTES` of a stream, however slow its reader is.

`CONTROL` frames (channel 0) are JSON objects, described in `pyvmm.lab.agent`.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

HEADER = struct.Struct("<BBHI")
CREDIT = struct.Struct("<I")

MAX_PAYLOAD_BYTES = 64 * 1024
"""Longest payload of a DATA frame."""

MAX_NAME_BYTES = 4096
"""Longest payload of an OPEN, CONNECT or CONNECTED frame."""

MAX_CONTROL_BYTES = 4 * 1024 * 1024
"""Longest payload of a CONTROL frame; it must hold an environment and a command line."""

WINDOW_BYTES = 256 * 1024
"""Most bytes in flight on one stream: the credit it starts with."""


class FrameType(IntEnum):
    """The type of a frame."""

    CONTROL = 1  # JSON object
    OPEN = 2  # new channel; payload: path of the socket to connect it to
    DATA = 3  # bytes of the sender's stream
    EOF = 4  # the sender's stream ends here
    CLOSE = 5  # the sender neither sends nor takes any more bytes
    CREDIT = 6  # u32: the sender has passed on this many bytes and takes as many more
    CONNECT = 7  # new channel; payload: a migration address on the host to connect it to
    CONNECTED = 8  # reply to CONNECT; payload: an error message, empty on success


_MAX_BYTES = {
    FrameType.CONTROL: MAX_CONTROL_BYTES,
    FrameType.OPEN: MAX_NAME_BYTES,
    FrameType.DATA: MAX_PAYLOAD_BYTES,
    FrameType.EOF: 0,
    FrameType.CLOSE: 0,
    FrameType.CREDIT: CREDIT.size,
    FrameType.CONNECT: MAX_NAME_BYTES,
    FrameType.CONNECTED: MAX_NAME_BYTES,
}


class FrameError(Exception):
    """The peer sent bytes that are not a frame; the link is unusable from then on."""


class Frame(NamedTuple):
    """One complete frame."""

    type: FrameType
    channel: int
    payload: bytes = b""


def encode(frame: Frame) -> bytes:
    """Return the bytes of `frame`. Raises FrameError for a payload too long for its type."""
    if len(frame.payload) > _MAX_BYTES[frame.type]:
        raise FrameError(f"{frame.type.name} payload of {len(frame.payload)} bytes is too long")
    return HEADER.pack(frame.type, 0, frame.channel, len(frame.payload)) + frame.payload


class Decoder:
    """Turns the bytes of the link, in pieces of any size, into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._broken = False

    def feed(self, data: bytes) -> list[Frame]:
        """Add `data` and return the frames that it completes.

        Raises FrameError for the first bytes that are not a frame, and on every call after that.
        """
        if self._broken:
            raise FrameError("the link is broken")
        self._buffer += data
        frames = []
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    def _next(self) -> Frame | None:
        if len(self._buffer) < HEADER.size:
            return None
        kind, zero, channel, length = HEADER.unpack_from(self._buffer)
        try:
            frame_type = FrameType(kind)
        except ValueError:
            raise self._bad(f"unknown frame type {kind}") from None
        if zero or length > _MAX_BYTES[frame_type]:
            raise self._bad(f"bad header of a {frame_type.name} frame ({length} bytes)")
        if frame_type is FrameType.CREDIT and length != CREDIT.size:
            raise self._bad(f"CREDIT of {length} bytes")
        end = HEADER.size + length
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[HEADER.size : end])
        del self._buffer[:end]
        return Frame(frame_type, channel, payload)

    def _bad(self, reason: str) -> FrameError:
        self._broken = True
        self._buffer.clear()
        return FrameError(f"malformed frame on the link: {reason}")
