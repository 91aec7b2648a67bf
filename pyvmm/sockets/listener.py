# SPDX-License-Identifier: Apache-2.0
"""The listener at which a migration's source connects.

Its owner accepts connections at `sockets`, which do not block, and closes it when one of them is
the source. In the lab the address belongs to the host, where `pyvmm.lab.run` listens; the
listener in the lab binds a unix socket to which those connections are forwarded.
"""

from __future__ import annotations

import contextlib
import socket
import threading

from pyvmm.blocking.thread_limit import thread_limit_reported
from pyvmm.errors import ThreadNotStarted
from pyvmm.sockets.addresses import Address, TcpAddress, UnixAddress, parse_migration_address
from pyvmm.sockets.lab_paths import IncomingSocket, incoming_socket, proxy_socket
from pyvmm.sockets.link import SocketLink, shut_down
from pyvmm.sockets.proxy_client import close_forwarded_listener
from pyvmm.sockets.tcp import listen_tcp
from pyvmm.sockets.tls import Security, handshake
from pyvmm.sockets.unix import UnixListener


class MigrationListener:
    """Listens for a source at `address`. Raises `UserError` if the address cannot be used."""

    def __init__(self, address: Address, security: Security) -> None:
        security.check(address)
        self._context = security.tls.context(server=True) if security.tls else None
        self._file: UnixListener | None = None
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

    @property
    def authenticates(self) -> bool:
        """True if a connection has shown a certificate once `protect` has returned."""
        return self._context is not None

    def protect(self, stream: socket.socket, within_s: float) -> SocketLink:
        """Return the link of an accepted connection, after the TLS handshake if there is one.

        Takes `stream` over. Raises `HandshakeFailed`. May be called from any thread.
        """
        if stream.family != socket.AF_UNIX:
            # Two small replies may follow each other, and the second would wait for the first.
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is None:
            return SocketLink(stream, local=isinstance(self.address, UnixAddress))
        stream.settimeout(within_s)
        return SocketLink(handshake(stream, self._context, None))

    def close(self) -> None:
        """Stop listening. May be called from another thread, and repeatedly."""
        if self._file is not None:
            self._file.unlink()
        for listening in self.sockets:
            shut_down(listening)
            listening.close()
        forwarded, self._forwarded = self._forwarded, None
        if forwarded is not None:
            # The reply of the host is not waited for. Without a thread, its listener stays until
            # the lab ends.
            with contextlib.suppress(ThreadNotStarted), thread_limit_reported():
                threading.Thread(
                    target=_close_outside, args=(forwarded,), name="unlisten", daemon=True
                ).start()


def _close_outside(forwarded: IncomingSocket) -> None:
    """Close the host's listener together with this one."""
    proxy = proxy_socket()
    if proxy is not None:
        with contextlib.suppress(OSError):  # the lab is ending, and its listeners with it
            close_forwarded_listener(proxy, forwarded.path)
