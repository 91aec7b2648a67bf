# SPDX-License-Identifier: Apache-2.0
"""The agent's proxy: commands in the lab reach sockets of the host through it.

`pyvmm.sockets.proxy_client` is the other side and defines the protocol. Reading a request never
blocks the agent. For `connect` the proxy reserves a channel and asks the host for the connection;
the host's reply goes to the client, whose socket then becomes the channel's end here. These
channels have numbers from `FIRST_CHANNEL` on, those of connections from the host lower ones.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from functools import partial

from pyvmm.lab.frames import MAX_NAME_BYTES
from pyvmm.lab.mux import Multiplexer
from pyvmm.sockets.proxy_client import LENGTH

FIRST_CHANNEL = 0x8000
LAST_CHANNEL = 0xFFFF
MAX_CLIENTS = 64
"""Clients whose request is not yet served; further ones are disconnected."""


class SocketProxy:
    """Listens at `path`; `on_unlisten` is called with the path that a client stops listening at."""

    def __init__(self, mux: Multiplexer, path: str, on_unlisten: Callable[[str], None]) -> None:
        self._mux = mux
        self._on_unlisten = on_unlisten
        self._reading: dict[socket.socket, bytearray] = {}
        self._connecting = 0
        self._next_channel = FIRST_CHANNEL
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(MAX_CLIENTS)
        self._listener.setblocking(False)
        mux.watch(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        if len(self._reading) + self._connecting >= MAX_CLIENTS:
            client.close()
            return
        client.setblocking(False)
        self._reading[client] = bytearray()
        self._mux.watch(client.fileno(), partial(self._read, client))

    def _read(self, client: socket.socket) -> None:
        request = self._reading[client]
        needed = LENGTH.size
        if len(request) >= needed:
            needed += LENGTH.unpack_from(request)[0]
        try:
            data = client.recv(needed - len(request))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        request += data
        if not data or len(request) > LENGTH.size + MAX_NAME_BYTES:
            self._stop_reading(client)
            client.close()
        elif len(request) > LENGTH.size and len(request) == needed:
            self._stop_reading(client)
            self._serve(client, bytes(request[LENGTH.size :]))

    def _stop_reading(self, client: socket.socket) -> None:
        self._mux.unwatch(client.fileno())
        del self._reading[client]

    def _serve(self, client: socket.socket, text: bytes) -> None:
        try:
            request = json.loads(text)
            ((verb, argument),) = request.items()
            address = os.fsencode(argument)
        except (ValueError, AttributeError, TypeError):
            verb, address = "", b""
        if verb == "connect" and 0 < len(address) <= MAX_NAME_BYTES:
            number = self._free_channel()
            self._connecting += 1
            self._mux.connect(number, os.fsdecode(address), partial(self._reply, number, client))
            return
        if verb == "unlisten":
            self._on_unlisten(os.fsdecode(address))
            _send_reply(client, "")
        client.close()

    def _free_channel(self) -> int:
        while True:
            number = self._next_channel
            self._next_channel = number + 1 if number < LAST_CHANNEL else FIRST_CHANNEL
            if number not in self._mux.channels:
                return number

    def _reply(self, number: int, client: socket.socket, error: str) -> None:
        self._connecting -= 1
        _send_reply(client, error)
        if error:
            client.close()
            self._mux.forget(number)
        else:
            self._mux.attach(number, client.detach())


def _send_reply(client: socket.socket, text: str) -> None:
    """Send the only reply to `client`; it is short, so it never blocks."""
    data = text.encode(errors="replace")
    try:
        client.send(LENGTH.pack(len(data)) + data)
    except OSError:
        return  # the client is gone; the next read of its socket reports that
