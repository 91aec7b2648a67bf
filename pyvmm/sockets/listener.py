# SPDX-License-Identifier: Apache-2.0
"""The listener at which a migration's source connects.

It accepts one source and closes. A peer that fails the TLS handshake is rejected and the listener
continues to wait. In the lab the address belongs to the host, where `pyvmm.lab.run` listens; the
listener in the lab binds a unix socket to which those connections are forwarded.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
from typing import TYPE_CHECKING

from pyvmm.sockets.addresses import Address, TcpAddress, UnixAddress, parse_migration_address
from pyvmm.sockets.errors import HandshakeFailed, ListenerClosed
from pyvmm.sockets.lab_paths import IncomingSocket, incoming_socket, proxy_socket
from pyvmm.sockets.link import SocketLink, shut_down
from pyvmm.sockets.proxy_client import close_forwarded_listener
from pyvmm.sockets.tcp import listen_tcp
from pyvmm.sockets.tls import Security, handshake
from pyvmm.sockets.unix import UnixListener

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

HANDSHAKE_TIMEOUT_S = 10.0
"""Longest time that a TLS handshake may take."""
_log = logging.getLogger(__name__)


class MigrationListener:
    """Listens for one source at `address`. Raises `UserError` if the address cannot be used."""

    def __init__(self, address: Address, security: Security) -> None:
        security.check(address)
        self._context = security.tls.context(server=True) if security.tls else None
        self._file: UnixListener | None = None
        self._handshaking: ssl.SSLSocket | None = None  # a peer not yet authenticated
        self._forwarded = incoming_socket(str(address))
        self.address: Address = address
        """The bound address, with the port that the system chose if 0 was requested."""
        if self._forwarded is not None:
            self.address = parse_migration_address(self._forwarded.address)
            self._file = UnixListener(self._forwarded.path, shown_as=address)
        elif isinstance(address, UnixAddress):
            self._file = UnixListener(address.path)
        self.sockets: list[socket.socket]
        """The listening sockets; a host name may have several addresses."""
        if self._file is not None:
            self.sockets = [self._file.socket]
        else:
            assert isinstance(address, TcpAddress)
            self.sockets = listen_tcp(address)
            self.address = TcpAddress(address.host, self.sockets[0].getsockname()[1])
        for listening in self.sockets:
            listening.setblocking(False)

    def accept(self) -> SocketLink:
        """Wait, without a time limit, for a source; then stop listening and return its link.

        Raises `ListenerClosed` when `close` was called.
        """
        while True:
            try:
                link = self._link(self._next_connection())
            except HandshakeFailed as error:
                _log.warning("a source was rejected: %s", error)
                continue
            self.close()
            return link

    def _next_connection(self) -> socket.socket:
        """Wait for a connection to any of the sockets. Raises `ListenerClosed`."""
        while True:
            try:
                for listening in _wait_for_clients(self.sockets):
                    with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
                        return listening.accept()[0]
            except (OSError, ValueError) as error:  # ValueError: closed before the wait began
                raise ListenerClosed("no source connected") from error

    def _link(self, stream: socket.socket) -> SocketLink:
        if self._context is None:
            return SocketLink(stream)
        stream.settimeout(HANDSHAKE_TIMEOUT_S)
        protected = handshake(stream, self._context, None, self._note_handshake)
        self._handshaking = None
        return SocketLink(protected)

    def _note_handshake(self, stream: ssl.SSLSocket) -> None:
        self._handshaking = stream
        if self.sockets[0].fileno() < 0:  # `close` ran before the assignment
            shut_down(stream)

    def close(self) -> None:
        """Stop listening. May be called from another thread, and repeatedly."""
        if self._file is not None:
            self._file.unlink()
        for listening in self.sockets:
            shut_down(listening)
            listening.close()
        if (stream := self._handshaking) is not None:
            shut_down(stream)
        forwarded, self._forwarded = self._forwarded, None
        if forwarded is not None:
            _close_outside(forwarded)


def _wait_for_clients(listening: Sequence[socket.socket]) -> list[socket.socket]:
    """Return those sockets that have a client, or were shut down; wait until there is one."""
    poll = select.poll()
    for each in listening:
        poll.register(each, select.POLLIN)
    ready = {fd for fd, _ in poll.poll()}
    return [each for each in listening if each.fileno() in ready]


def _close_outside(forwarded: IncomingSocket) -> None:
    """Close the host's listener together with this one."""
    proxy = proxy_socket()
    if proxy is not None:
        with contextlib.suppress(OSError):  # the lab is ending, and its listeners with it
            close_forwarded_listener(proxy, forwarded.path)
