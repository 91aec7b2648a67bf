# SPDX-License-Identifier: Apache-2.0
"""The host's side of socket connections between the host and the lab.

Inwards: this process listens on behalf of the command, and each connection becomes a channel that
the agent connects to the command's socket. Outwards: the agent requests a connection to an address
on the host for a channel, and `OutboundConnector` makes it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from pyvmm.lab.mux import Multiplexer
from pyvmm.lab.outbound_connector import OutboundConnector
from pyvmm.lab.proxy import FIRST_CHANNEL
from pyvmm.sockets.acceptor import Acceptor

MAX_CHANNELS = 64
"""With this many channels in use, further clients are disconnected."""

_FIRST_INWARD_CHANNEL = 16
_LAST_INWARD_CHANNEL = FIRST_CHANNEL - 1


class ForwardedListener(NamedTuple):
    """A socket on the host that listens on behalf of the command."""

    socket: socket.socket
    lab_path: str
    """The path in the lab that connections are forwarded to."""
    close: Callable[[], None]
    """Stop listening; may be called repeatedly."""


class SocketForwarder:
    """Forwards connections of `listeners` over `mux`, and those that the agent requests."""

    def __init__(self, mux: Multiplexer, listeners: Sequence[ForwardedListener]) -> None:
        self._mux = mux
        self._listeners = listeners
        self._acceptors: list[Acceptor] = []
        self._next_channel = _FIRST_INWARD_CHANNEL
        self._connector = OutboundConnector()
        mux.watch(self._connector.fileno(), self._reply_results)
        for listener in listeners:
            listener.socket.setblocking(False)
            acceptor = Acceptor(listener.socket, "client of the lab")
            self._acceptors.append(acceptor)
            mux.watch(listener.socket.fileno(), partial(self._accept, listener, acceptor))

    def connect(self, number: int, address: str) -> None:
        """Serve the agent's request to connect channel `number` to `address` on the host."""
        self._mux.reserve(number)
        self._connector.connect(number, address)

    def unlisten(self, lab_path: str) -> None:
        """Close the listeners that forward to `lab_path`."""
        closing = [listener for listener in self._listeners if listener.lab_path == lab_path]
        for listener in closing:
            self._mux.unwatch(listener.socket.fileno())
        for listener in closing:
            listener.close()

    def close(self) -> None:
        """Drop connections that are being made; the listeners stay open."""
        self._connector.close()
        for acceptor in self._acceptors:
            acceptor.close()

    def _accept(self, listener: ForwardedListener, acceptor: Acceptor) -> None:
        connection = acceptor.accept(len(self._mux.channels), MAX_CHANNELS)
        if connection is None:
            return
        while self._next_channel in self._mux.channels:
            self._next_channel += 1
        self._mux.open(self._next_channel, listener.lab_path, connection.detach())
        self._next_channel += 1
        if self._next_channel > _LAST_INWARD_CHANNEL:
            self._next_channel = _FIRST_INWARD_CHANNEL

    def _reply_results(self) -> None:
        for number, stream, error in self._connector.results():
            self._mux.reply_connect(number, error)
            if stream is None:
                self._mux.forget(number)
            else:
                self._mux.attach(number, stream.detach())
