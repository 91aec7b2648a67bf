# SPDX-License-Identifier: Apache-2.0
"""Sessions on sockets, and the VM's events for all of them.

Every client has a session of its own and receives every event once it has negotiated. At most
`MAX_CLIENTS` are connected; further ones are disconnected at once. A client's
requests are served only while it reads the replies: when unread replies exceed asyncio's high-water
mark, the server stops reading its requests until it has caught up. Events cannot wait, so a client
with more than `MAX_UNSENT_BYTES` unread when one is sent is disconnected. No client can delay
another, the VM, or the end of the VM. A command that waits for the guest is cancelled when its
client disconnects or the VM ends; the client's further requests wait meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import cast

from pyvmm.qmp import messages as qmp
from pyvmm.qmp.event_throttle import EventThrottle
from pyvmm.qmp.json_stream import JsonStream
from pyvmm.qmp.messages import QmpError
from pyvmm.qmp.session import QmpSession, Reply
from pyvmm.qmp.vm_control import VmControl
from pyvmm.sockets.acceptor import Acceptor
from pyvmm.sockets.unix import UnixListener

MAX_CLIENTS = 32
MAX_UNSENT_BYTES = 1 << 20
BALLOON_CHANGE_PERIOD_S = 1.0
_CLOSE_TIMEOUT_S = 1.0

_log = logging.getLogger(__name__)


class ControlServer:
    """The control socket of `vm`.

    `socket` is the path to create it at, or a listener that exists already, whose clients wait.
    `start` raises `UserError` if the path cannot be used. `close` delivers what has been sent so
    far and removes the socket file.

    Threads: event loop.
    """

    def __init__(self, vm: VmControl, socket: Path | UnixListener) -> None:
        self._vm = vm
        self._address = socket
        self._clients: set[_Client] = set()
        self._connecting: set[asyncio.Future[None]] = set()

    async def start(self) -> None:
        """Start to listen, and to send the VM's events."""
        loop = asyncio.get_running_loop()
        at = self._address
        self._listener = at if isinstance(at, UnixListener) else UnixListener(at)
        self._listener.socket.setblocking(False)
        self._acceptor = Acceptor(self._listener.socket, "control client")
        loop.add_reader(self._listener.socket, self._accept)
        self._balloon_changes: EventThrottle[bytes] = EventThrottle(
            BALLOON_CHANGE_PERIOD_S, self._broadcast, loop.call_later
        )
        self._vm.subscribe(self._on_event)

    async def close(self) -> None:
        """Stop listening, give clients a moment to read what has been sent, and disconnect them."""
        asyncio.get_running_loop().remove_reader(self._listener.socket)
        self._acceptor.close()
        self._listener.remove()
        self._balloon_changes.flush()
        for connecting in self._connecting:
            connecting.cancel()
        closed = [client.close() for client in self._clients]
        if closed:
            await asyncio.wait(closed, timeout=_CLOSE_TIMEOUT_S)
        for client in list(self._clients):
            client.abort()

    def _accept(self) -> None:
        clients = len(self._clients) + len(self._connecting)
        stream = self._acceptor.accept(clients, MAX_CLIENTS)
        if stream is not None:
            connecting = asyncio.ensure_future(self._connect(stream))
            self._connecting.add(connecting)
            connecting.add_done_callback(self._connecting.discard)

    async def _connect(self, stream: socket.socket) -> None:
        client = _Client(self._vm, self._clients)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: client, stream)

    def _on_event(self, name: str, data: Mapping[str, object]) -> None:
        line = qmp.encode(qmp.event(name, data, time.time_ns()))
        if name == "BALLOON_CHANGE":
            self._balloon_changes.offer(line)
        else:
            self._broadcast(line)

    def _broadcast(self, line: bytes) -> None:
        for client in list(self._clients):
            client.notify(line)


class _Client(asyncio.Protocol):
    """One connection: decodes messages for its session and encodes the replies."""

    def __init__(self, vm: VmControl, clients: set[_Client]) -> None:
        self._clients = clients
        self._session = QmpSession(vm)
        self._stream = JsonStream()
        self._reads = True  # whether the client reads the replies
        self._waiting: asyncio.Task[None] | None = None  # a command that waits for the guest
        self._closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._clients.add(self)
        self._transport.write(qmp.encode(qmp.greeting()))

    def connection_lost(self, exc: Exception | None) -> None:
        self._clients.discard(self)
        self._cancel_waiting()
        self._closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._stream.feed(data)
        if self._waiting is not None:
            self._transport.pause_reading()
        self._serve()

    def pause_writing(self) -> None:
        self._reads = False
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._reads = True
        if self._waiting is None:
            self._transport.resume_reading()
            self._serve()

    def _serve(self) -> None:
        """Serve the requests that have arrived, as long as the client reads the replies."""
        while self._reads and self._waiting is None and not self._transport.is_closing():
            try:
                message = self._stream.next()
                if message is None:
                    return
                reply = self._session.reply(message)
            except QmpError as error:
                reply = qmp.failure(error)
            if isinstance(reply, dict):
                self._transport.write(qmp.encode(reply))
            else:
                self._waiting = asyncio.ensure_future(self._reply_later(reply))

    async def _reply_later(self, reply: Awaitable[Reply]) -> None:
        line = qmp.encode(await reply)
        self._waiting = None
        if not self._transport.is_closing():
            self._transport.write(line)
            if self._reads:
                self._transport.resume_reading()
            self._serve()

    def _cancel_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def notify(self, line: bytes) -> None:
        """Send an event, or disconnect a client that has left too much unread."""
        if not self._session.negotiated or self._transport.is_closing():
            return
        unsent_bytes = self._transport.get_write_buffer_size()
        if unsent_bytes > MAX_UNSENT_BYTES:
            _log.warning("control client disconnected: it left %d bytes unread", unsent_bytes)
            self._transport.abort()
        else:
            self._transport.write(line)

    def close(self) -> asyncio.Future[None]:
        """Close the connection once everything is sent; the future is done when it is closed."""
        self._cancel_waiting()
        self._transport.close()
        return self._closed

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()
