# SPDX-License-Identifier: Apache-2.0
"""The agent's side of `pyvmm.sockets.proxy_client`: the way from the lab to sockets outside.


A caller's request is read without waiting for it. For `connect` a channel is reserved and the
machine outside asked for the connection; its answer is the caller's, and from then on the caller's
socket is the channel's end here. Channel numbers are from the upper half, those of connections
from outside from the lower.
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
MAX_CALLERS = 64


class SocketProxy:
    """Serves the door at `path`; `unlisten` is called with the path that a caller gives up."""

    def __init__(self, mux: Multiplexer, path: str, unlisten: Callable[[str], None]) -> None:
        self._mux = mux
        self._unlisten = unlisten
        self._reading: dict[socket.socket, bytearray] = {}
        self._asking: dict[int, socket.socket] = {}
        self._next_channel = FIRST_CHANNEL
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(MAX_CALLERS)
        self._listener.setblocking(False)
        mux.on_connected = self._connected
        mux.watch(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            caller, _ = self._listener.accept()
        except OSError:
            return
        if len(self._reading) + len(self._asking) >= MAX_CALLERS:
            caller.close()
            return
        caller.setblocking(False)
        self._reading[caller] = bytearray()
        self._mux.watch(caller.fileno(), partial(self._read, caller))

    def _read(self, caller: socket.socket) -> None:
        request = self._reading[caller]
        wanted = LENGTH.size
        if len(request) >= wanted:
            wanted += LENGTH.unpack_from(request)[0]
        try:
            data = caller.recv(wanted - len(request))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        request += data
        if not data or len(request) > LENGTH.size + MAX_NAME_BYTES:
            self._take(caller).close()
        elif len(request) > LENGTH.size and len(request) == wanted:
            self._serve(self._take(caller), bytes(request[LENGTH.size :]))

    def _take(self, caller: socket.socket) -> socket.socket:
        self._mux.unwatch(caller.fileno())
        del self._reading[caller]
        return caller

    def _serve(self, caller: socket.socket, text: bytes) -> None:
        try:
            request = json.loads(text)
            ((verb, argument),) = request.items()
            address = os.fsencode(argument)
        except (ValueError, AttributeError, TypeError):
            verb, address = "", b""
        if verb == "connect" and 0 < len(address) <= MAX_NAME_BYTES:
            self._asking[number := self._free_channel()] = caller
            self._mux.connect(number, os.fsdecode(address))
            return
        if verb == "unlisten":
            self._unlisten(os.fsdecode(address))
            self._answer(caller, "")
        caller.close()

    def _free_channel(self) -> int:
        while True:
            number = self._next_channel
            self._next_channel = number + 1 if number < LAST_CHANNEL else FIRST_CHANNEL
            if number not in self._mux.channels:
                return number

    def _connected(self, number: int, refused: str) -> None:
        caller = self._asking.pop(number)
        self._answer(caller, refused)
        if refused:
            caller.close()
            self._mux.forget(number)
        else:
            self._mux.attach(number, caller.detach())

    def _answer(self, caller: socket.socket, text: str) -> None:
        """Never waits: nothing else was ever sent to this caller, and this is short."""
        data = text.encode(errors="replace")
        try:
            caller.send(LENGTH.pack(len(data)) + data)
        except OSError:
            return  # gone; whoever reads from it next will see
