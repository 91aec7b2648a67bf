# SPDX-License-Identifier: Apache-2.0
"""A port at a unix socket: the bytes of a client are the guest's input, and its output goes there.

As with QEMU's `server=on,wait=off`, the guest runs whether a client is connected or not, and sees
the port open while one is. One client is served at a time; the next ones wait in the backlog.
The end of a client's input ends its connection, once the guest has taken all of it. So does the
end of the port.

Neither side buffers more than one read: a client is not read from before the guest has taken the
last input, and the guest waits until the socket takes its output.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyvmm.sockets.acceptor import Acceptor

if TYPE_CHECKING:
    from pyvmm.console.ports import LockedPort
    from pyvmm.sockets.unix import UnixListener
    from pyvmm_native.chain_reader import ChainReader

_READ_BYTES = 1 << 16


class PortServer:
    """Serves `port` to the clients of `listener`, which stays the caller's.

    Threads: event loop.
    """

    def __init__(self, port: LockedPort, listener: UnixListener) -> None:
        self._loop = asyncio.get_running_loop()
        self._port = port
        self._socket = listener.socket
        self._socket.setblocking(False)
        self._acceptor = Acceptor(self._socket, f"client of port {port.name}")
        self._client: _Client | None = None
        self._wait()

    def close(self) -> None:
        """Disconnect the client, and accept no other."""
        if self._client is not None:
            self._client.close()
        self._loop.remove_reader(self._socket)
        self._acceptor.close()

    def _wait(self) -> None:
        self._client = None
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        stream = self._acceptor.accept(0, 1)
        if stream is not None and self._port.removed:
            stream.close()
        elif stream is not None:
            self._loop.remove_reader(self._socket)
            self._client = _Client(self._loop, self._port, stream, self._wait)


class _Client:
    """One connected client; satisfies `PortHost`. `on_end` is called when it has disconnected.

    Threads: event loop; `room_available` and `guest_open_changed` any that holds the device lock.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        port: LockedPort,
        stream: socket.socket,
        on_end: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._port = port
        self._stream = stream
        self._on_end = on_end
        self._pending = b""
        self._input_ended = False
        self._closed = False
        stream.setblocking(False)
        port.connect(self)
        loop.add_reader(stream, self._readable)

    def close(self) -> None:
        """Disconnect."""
        if self._closed:
            return
        self._closed = True
        self._port.disconnect()
        self._loop.remove_reader(self._stream)
        self._loop.remove_writer(self._stream)
        self._stream.close()

    def write(self, output: ChainReader) -> int:
        """As `PortHost.write`; output that the client will not read is discarded."""
        try:
            sent = output.write_to(self._stream.fileno())
        except OSError:
            self._loop.call_soon(self._end)
            return len(output)
        if sent < len(output):
            self._loop.add_writer(self._stream, self._writable)
        return sent

    def room_available(self) -> None:
        """As `PortHost.room_available`."""
        self._soon(self._send_pending)

    def guest_open_changed(self, is_open: bool) -> None:
        """As `PortHost.guest_open_changed`."""

    def unplugged(self) -> None:
        """As `PortHost.unplugged`."""
        self._soon(self._end)

    def _soon(self, callback: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the VM
            self._loop.call_soon_threadsafe(callback)

    def _writable(self) -> None:
        self._loop.remove_writer(self._stream)
        self._port.resume()

    def _readable(self) -> None:
        try:
            data = self._stream.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._end()
            return
        self._input_ended = not data
        self._pending = data
        self._loop.remove_reader(self._stream)
        self._send_pending()

    def _send_pending(self) -> None:
        """Pass the last input to the guest; once it has taken all of it, read more."""
        if self._closed:
            return
        if self._pending:
            self._pending = self._pending[self._port.offer(self._pending) :]
        if self._pending:
            return
        if self._input_ended:
            self._end()
        else:
            self._loop.add_reader(self._stream, self._readable)

    def _end(self) -> None:
        if not self._closed:
            self.close()
            self._on_end()
