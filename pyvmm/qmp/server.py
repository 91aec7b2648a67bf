# SPDX-License-Identifier: Apache-2.0
"""Sessions on sockets, and the VM's events for all of them.

Every client has a session of its own and receives every event once it has negotiated. At most
`MAX_CLIENTS` are connected; further ones are disconnected at once. No client can delay another for
more than a batch of requests (`connection`), nor the VM or its end. A command that waits for the
guest is cancelled when its client disconnects or the VM ends; the client's further requests wait
meanwhile.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from pyvmm.qmp import messages as qmp
from pyvmm.qmp.connection import Connection
from pyvmm.qmp.event_throttle import EventThrottle
from pyvmm.qmp.vm_control import VmControl
from pyvmm.sockets.acceptor import Acceptor
from pyvmm.sockets.hang_ups import HangUpWatcher
from pyvmm.sockets.unix import UnixListener

MAX_CLIENTS = 32
BALLOON_CHANGE_PERIOD_S = 1.0
_CLOSE_TIMEOUT_S = 1.0


class Listener(Protocol):
    """A unix socket that listens; `remove` removes its file and closes it, also repeatedly."""

    socket: socket.socket

    def remove(self) -> None: ...


class ControlServer:
    """The control socket of `vm`.

    `socket` is the path to create it at, or a listener that exists already, whose clients wait.
    `start` raises `UserError` if the path cannot be used. `close` delivers what has been sent so
    far and removes the socket file.

    Threads: event loop.
    """

    def __init__(self, vm: VmControl, socket: Path | Listener) -> None:
        self._vm = vm
        self._address = socket
        self._clients: set[Connection] = set()
        self._connecting: set[asyncio.Future[None]] = set()

    async def start(self) -> None:
        """Start to listen, and to send the VM's events."""
        loop = asyncio.get_running_loop()
        at = self._address
        self._listener = UnixListener(at) if isinstance(at, Path) else at
        self._listener.socket.setblocking(False)
        self._acceptor = Acceptor(self._listener.socket, "control client")
        self._hang_ups = HangUpWatcher()
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
        self._hang_ups.close()

    def _accept(self) -> None:
        clients = len(self._clients) + len(self._connecting)
        stream = self._acceptor.accept(clients, MAX_CLIENTS)
        if stream is not None:
            connecting = asyncio.ensure_future(self._connect(stream))
            self._connecting.add(connecting)
            connecting.add_done_callback(self._connecting.discard)

    async def _connect(self, stream: socket.socket) -> None:
        client = Connection(self._vm, self._clients, self._hang_ups)
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
