# SPDX-License-Identifier: Apache-2.0
"""A connected stream socket, with or without TLS, as a migration uses it.

A link blocks the thread that uses it until its `deadline`, which the user moves as the work
proceeds. The socket itself does not block; the link waits in poll(2) if there is nothing to receive
or no room to send. Only `abort` and `end_input` may be called from another thread.
Every failure is a `ConnectionLost`.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import ssl
import time
from typing import TYPE_CHECKING, TypeVar

from pyvmm.sockets.errors import ConnectionLost, TransferTimedOut, reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

_T = TypeVar("_T")
_UNIX_BUFFER_BYTES = 1 << 19
"""So that the receiver takes this much of a block while more is prepared. Linux's default is
208 KiB, and `net.core.wmem_max` (sysctl) is the most that it allows."""
_RECEIVE_BYTES = 1 << 18
"""Most bytes of one receive: a larger one is mapped for each receive, a page fault per page."""


class SocketLink:
    """Sends and receives bytes on `stream`, which it owns.

    `local` says that its address is that of a unix socket: in the lab the socket itself is always
    one, as connections from and to other addresses are forwarded.
    """

    def __init__(self, stream: socket.socket, *, local: bool = False) -> None:
        self.local = local
        stream.setblocking(False)
        if stream.family == socket.AF_UNIX:  # TCP's buffers grow by themselves
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNIX_BUFFER_BYTES)
        self._stream = stream
        self._input, self._output = select.poll(), select.poll()
        self._input.register(stream, select.POLLIN)
        self._output.register(stream, select.POLLOUT)
        self._buffers = isinstance(stream, ssl.SSLSocket)  # bytes that poll(2) does not know of
        self._lookahead = b""  # a byte that `readable` has read
        self.deadline = math.inf
        """The time.monotonic() at which a wait fails with `TransferTimedOut`."""

    def send(self, data: Buffer) -> None:
        """Send all of `data`."""
        view = memoryview(data)
        while view:
            try:
                view = view[self._stream.send(view) :]
                if view and not self._buffers:
                    self._wait(self._output)
            except (BlockingIOError, ssl.SSLWantWriteError):
                self._wait(self._output)
            except ssl.SSLWantReadError:
                self._wait(self._input)
            except OSError as error:
                raise _lost(error) from error

    def receive(self, at_most: int) -> bytes:
        """Return 1 to `at_most` bytes; none when the peer has closed the connection."""
        if self._lookahead:
            data, self._lookahead = self._lookahead, b""
            return data
        return self._receiving(lambda: self._stream.recv(min(at_most, _RECEIVE_BYTES)))

    def receive_into(self, buffer: memoryview) -> int:
        """Receive 1 to `len(buffer)` bytes and return their number; 0 as `receive` returns none."""
        if self._lookahead:
            buffer[:1], self._lookahead = self._lookahead, b""
            return 1
        return self._receiving(lambda: self._stream.recv_into(buffer))

    def _receiving(self, receive: Callable[[], _T]) -> _T:
        """Return what `receive` returns once there are bytes or the end."""
        if not self._buffers:
            self._wait(self._input)
        while True:
            try:
                return receive()
            except (BlockingIOError, ssl.SSLWantReadError):
                self._wait(self._input)
            except ssl.SSLWantWriteError:
                self._wait(self._output)
            except OSError as error:
                raise _lost(error) from error

    def readable(self) -> bool:
        """Return True if `receive` would not block."""
        if self._lookahead:
            return True
        if not self._buffers:
            return bool(self._input.poll(0))
        # The bytes may be for TLS itself, such as a session ticket; only reading tells.
        try:
            self._lookahead = self._stream.recv(1)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError as error:
            raise _lost(error) from error
        return True

    @property
    def plain_fd(self) -> int | None:
        """The socket's descriptor, if bytes on it are those of the link; None with TLS."""
        return None if self._buffers else self._stream.fileno()

    def abort(self) -> None:
        """Make the thread that uses the link fail at once; may be called from another thread."""
        shut_down(self._stream)

    def end_input(self) -> None:
        """Make the thread that receives find the end of the stream once it has all that is here."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._stream, socket.SHUT_RD)

    def close(self) -> None:
        """Close the connection; the link must not be in use."""
        self._stream.close()

    def _wait(self, poll: select.poll) -> None:
        """Wait until `poll` has events, or the deadline has passed."""
        if self.deadline == math.inf:
            poll.poll()
            return
        left_ms = math.ceil((self.deadline - time.monotonic()) * 1000)
        if not poll.poll(max(left_ms, 0)):
            raise TransferTimedOut("the other side has not answered in time")


def shut_down(stream: socket.socket) -> None:
    """End both directions of `stream`, which another thread may be using.

    `SSLSocket.shutdown` would drop its TLS state under that thread, so this calls the plain one.
    """
    with contextlib.suppress(OSError):
        socket.socket.shutdown(stream, socket.SHUT_RDWR)


def _lost(error: OSError) -> ConnectionLost:
    return ConnectionLost(f"the connection failed: {reason(error)}")
