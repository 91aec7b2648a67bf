# SPDX-License-Identifier: Apache-2.0
"""Connect to a migration's destination.

In the lab an address is tried there first and then, through the proxy, on the host. TLS is
end-to-end: the proxy forwards it unread.
"""

from __future__ import annotations

import errno
import socket

from pyvmm.errors import UserError
from pyvmm.sockets.addresses import Address, TcpAddress, UnixAddress
from pyvmm.sockets.errors import HandshakeFailed, PeerUntrusted, reason
from pyvmm.sockets.lab_paths import proxy_socket
from pyvmm.sockets.link import SocketLink
from pyvmm.sockets.lookup import look_up
from pyvmm.sockets.proxy_client import connect_through_proxy
from pyvmm.sockets.tls import Security, handshake

CONNECT_TIMEOUT_S = 10.0
"""Longest time for one address of the destination, and for the TLS handshake."""
_SEND_BUFFER_BYTES = 4 << 20
"""Requested for unix sockets, for fewer and longer sends; the kernel limits it to wmem_max."""


class Connector:
    """Connects to the destination at `address`, each time with the same TLS context.

    Raises `UserError`. Threads: any.
    """

    def __init__(self, address: Address, security: Security) -> None:
        security.check(address)
        self._address = address
        self._context = security.tls.context(server=False) if security.tls else None

    def connect(self) -> SocketLink:
        """Return a link to the destination. Raises `UserError`."""
        address = self._address
        try:
            stream = _connect_here_or_outside(address)
        except OSError as error:
            raise UserError(
                f"no destination can be reached at {address}: {reason(error)}"
            ) from error
        if self._context is None or not isinstance(address, TcpAddress):
            return SocketLink(stream, local=isinstance(address, UnixAddress))
        try:
            return SocketLink(handshake(stream, self._context, address.host))
        except HandshakeFailed as error:
            raise PeerUntrusted(f"{address} is not trusted: {error}") from error


def connect(address: Address, security: Security) -> SocketLink:
    """Return a link to the destination that listens at `address`. Raises `UserError`."""
    return Connector(address, security).connect()


def connect_directly(address: Address) -> socket.socket:
    """Return a stream from this machine (the lab or the host) to `address`.

    Raises `OSError`.
    """
    if isinstance(address, TcpAddress):
        return _connect_tcp(address)
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    try:
        stream.settimeout(CONNECT_TIMEOUT_S)
        stream.connect(str(address.path))
    except OSError:
        stream.close()
        raise
    return stream


def _connect_tcp(address: TcpAddress) -> socket.socket:
    """Connect to the first of the host's addresses that can be reached. Raises `OSError`."""
    try:
        found = look_up(address.host, address.port)
    except UnicodeError as error:
        raise OSError(errno.EINVAL, f"{address.host!r} is not a host name") from error
    failure = OSError(errno.EADDRNOTAVAIL, "the host has no address")
    for family, kind, protocol, _, at in found:
        try:
            stream = socket.socket(family, kind, protocol)
        except OSError as error:  # of a family that this host does not have
            failure = error
            continue
        try:
            stream.settimeout(CONNECT_TIMEOUT_S)
            stream.connect(at)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            stream.close()
            failure = error
        else:
            return stream
    raise failure


def _connect_here_or_outside(address: Address) -> socket.socket:
    try:
        return connect_directly(address)
    except OSError:
        proxy = proxy_socket()
        if proxy is None:
            raise
    if isinstance(address, UnixAddress):
        address = UnixAddress(address.path.absolute())
    return connect_through_proxy(proxy, str(address))
