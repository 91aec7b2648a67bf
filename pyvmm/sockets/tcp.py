# SPDX-License-Identifier: Apache-2.0
"""Listen on a TCP address as QEMU does: on every address that the host name resolves to.

One of them suffices; each that cannot be used is logged. `::` accepts IPv4 connections, too, unless
another socket listens on that port of IPv4.
"""

from __future__ import annotations

import errno
import logging
import socket
from typing import Any

from pyvmm.sockets.addresses import TcpAddress
from pyvmm.sockets.errors import AddressUnavailable, reason
from pyvmm.sockets.lookup import look_up

_BACKLOG = 16
_log = logging.getLogger(__name__)


def listen_tcp(address: TcpAddress) -> list[socket.socket]:
    """Return sockets that listen at `address`, at least one; all have the same port.

    Raises `AddressUnavailable`.
    """
    listeners: list[socket.socket] = []
    errors: list[str] = []
    port = address.port
    for family, host, *rest in _addresses(address):
        try:
            listener = _listen(family, (host, port, *rest))
        except OSError as error:
            errors.append(f"{TcpAddress(host, port)}: {reason(error)}")
            continue
        listeners.append(listener)
        port = listener.getsockname()[1]
    if not listeners:
        raise AddressUnavailable(f"cannot listen on {errors[0]}")
    for text in errors:
        _log.warning("not listening on %s", text)
    return listeners


def _addresses(address: TcpAddress) -> list[tuple[Any, ...]]:
    """Return the family, IP address, and for IPv6 flow and scope, of each address of the host."""
    try:
        found = look_up(address.host, address.port, socket.AI_PASSIVE)
    except UnicodeError:
        raise AddressUnavailable(
            f"cannot listen on {address}: {address.host!r} is not a host name"
        ) from None
    except OSError as error:
        raise AddressUnavailable(f"cannot listen on {address}: {reason(error)}") from error
    return list(dict.fromkeys((family, at[0], *at[2:]) for family, _, _, _, at in found))


def _listen(family: int, at: tuple[Any, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            _bind_dual_stack(listener, at)
        else:
            listener.bind(at)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _bind_dual_stack(listener: socket.socket, at: tuple[Any, ...]) -> None:
    """Bind for IPv6 and, if `at` is the wildcard address and the port is free there, IPv4."""
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    try:
        listener.bind(at)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(at)
