# SPDX-License-Identifier: Apache-2.0
"""A connected stream socket, with or without TLS, as a migration uses it.

A link blocks the thread that uses it, for at most `IDLE_TIMEOUT_S` without transfer. Only
`abort` may be called from another thread. Every failure is a `ConnectionLost`.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from typing import TYPE_CHECKING

from pyvmm.sockets.errors import ConnectionLost, reason

if TYPE_CHECKING:
    from typing_extensions import Buffer

IDLE_TIMEOUT_S = 60.0
_RECEIVE_BYTES = 1 << 18
"""Most bytes of one receive: a larger one is mapped for each receive, a page fault per page."""


class SocketLink:
    """Sends and receives bytes on `stream`, which it owns."""

    def __init__(self, stream: socket.socket) -> None:
        stream.settimeout(IDLE_TIMEOUT_S)
        self._stream = stream
        self._lookahead = b""  # a byte that `readable` has read

    def send(self, data: Buffer) -> None:
        """Send all of `data`."""
        view = memoryview(data)
        try:
            while view:  # not sendall, whose time-out covers the whole of `data`
                view = view[self._stream.send(view) :]
        except OSError as error:
            raise _lost(error) from error

    def receive(self, at_most: int) -> bytes:
        """Return 1 to `at_most` bytes; none when the peer has closed the connection."""
        if self._lookahead:
            data, self._lookahead = self._lookahead, b""
            return data
        try:
            return self._stream.recv(min(at_most, _RECEIVE_BYTES))
        except OSError as error:
            raise _lost(error) from error

    def readable(self) -> bool:
        """Return True if `receive` would not block."""
        if self._lookahead:
            return True
        if not isinstance(self._stream, ssl.SSLSocket):
            poll = select.poll()
            poll.register(self._stream, select.POLLIN)
            return bool(poll.poll(0))
        # The bytes may be for TLS itself, such as a session ticket; only reading tells.
        self._stream.settimeout(0.0)
        try:
            self._lookahead = self._stream.recv(1)
        except ssl.SSLWantReadError:
            return False
        except OSError as error:
            raise _lost(error) from error
        finally:
            self._stream.settimeout(IDLE_TIMEOUT_S)
        return True

    def abort(self) -> None:
        """Make the thread that uses the link fail at once; may be called from another thread."""
        shut_down(self._stream)

    def close(self) -> None:
        """Close the connection; the link must not be in use."""
        self._stream.close()


def shut_down(stream: socket.socket) -> None:
    """End both directions of `stream`, which another thread may be using.

    `SSLSocket.shutdown` would drop its TLS state under that thread, so this calls the plain one.
    """
    with contextlib.suppress(OSError):
        socket.socket.shutdown(stream, socket.SHUT_RDWR)


def _lost(error: OSError) -> ConnectionLost:
    if isinstance(error, TimeoutError):
        return ConnectionLost(f"the other side has sent nothing for {IDLE_TIMEOUT_S:g} s")
    return ConnectionLost(f"the connection failed: {reason(error)}")
