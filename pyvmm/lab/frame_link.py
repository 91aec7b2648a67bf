# SPDX-License-Identifier: Apache-2.0
"""One end of the lab's link: frames on a non-blocking descriptor.

`send` only appends to a buffer; `flush` writes what the descriptor takes, and `read` returns the
frames that have arrived. The owner polls the descriptor and keeps the buffer short by sending only
while `has_room`.
"""

from __future__ import annotations

import os

from pyvmm.lab.frames import MAX_PAYLOAD_BYTES, Decoder, Frame, encode

_BUFFER_BYTES = 256 * 1024
_READ_BYTES = 2 * MAX_PAYLOAD_BYTES
_WRITE_BYTES = 2 * MAX_PAYLOAD_BYTES
RETRY = (BlockingIOError, InterruptedError)


class LinkClosedError(Exception):
    """The other end of the link is gone."""


class FrameLink:
    """Sends and receives frames on `fd`, which stays the caller's to close."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._decoder = Decoder()
        self._outgoing = bytearray()
        self.received_bytes = 0
        """Total number of bytes received; while it grows, the peer is alive."""

    @property
    def has_outgoing(self) -> bool:
        """True if frames wait to be written."""
        return bool(self._outgoing)

    @property
    def has_room(self) -> bool:
        """True if the buffer has room for more data."""
        return len(self._outgoing) < _BUFFER_BYTES

    def send(self, frame: Frame) -> None:
        """Queue `frame`."""
        self._outgoing += encode(frame)

    def flush(self) -> None:
        """Write queued bytes, as many as the descriptor takes at once. Raises LinkClosedError."""
        try:
            written = os.write(self.fd, self._outgoing[:_WRITE_BYTES])
        except RETRY:
            return
        except OSError as error:
            raise LinkClosedError(str(error)) from error
        del self._outgoing[:written]

    def read(self) -> list[Frame]:
        """Return the frames completed by the bytes that have arrived.

        Raises LinkClosedError, FrameError.
        """
        data = self._read_bytes()
        self.received_bytes += len(data)
        return self._decoder.feed(data)

    def _read_bytes(self) -> bytes:
        """Read up to `_READ_BYTES`; a virtio-serial port returns 4 KiB per read."""
        pieces: list[bytes] = []
        room = _READ_BYTES
        while room > 0:
            try:
                piece = os.read(self.fd, room)
            except RETRY:
                break
            except OSError as error:
                raise LinkClosedError(str(error)) from error
            if not piece:
                if pieces:
                    break  # the next read reports the end again
                raise LinkClosedError("end of file")
            pieces.append(piece)
            room -= len(piece)
        return b"".join(pieces)
