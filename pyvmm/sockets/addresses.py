# SPDX-License-Identifier: Apache-2.0
"""Addresses of sockets as users write them: `unix:PATH` and `tcp:HOST:PORT`.

A control socket is always a unix socket; a migration takes either form. As in QEMU, the address of
a control socket is a list of options, in which `,,` is a comma of the path, while a migration's
path is taken literally. Both parsers check the syntax only: they neither look up names nor access
files.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from pyvmm.errors import UserError
from pyvmm.sockets.errors import SocketPathTooLong

_PATH_LIMIT_BYTES = 107  # sizeof(sun_path) less the terminating zero, unix(7)
_QEMU_OPTIONS = {"server", "server=on", "wait=off", "nowait"}
_EXPECTED = "expected tcp:HOST:PORT, e.g. tcp:127.0.0.1:4444, or unix:PATH"


class TcpAddress(NamedTuple):
    """A `host` name or IP address, and a `port`; a listener at port 0 gets one from the system."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"


class UnixAddress(NamedTuple):
    """The `path` of a socket file."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress
"""The address of a migration's destination."""


def parse_unix_address(text: str) -> Path:
    """Return the path in `unix:PATH`, which QEMU's `,server=on,wait=off` may follow.

    Raises `UserError` for anything else, including a path too long for a unix socket.
    """
    scheme, _, rest = text.partition(":")
    path, *options = (part.replace("\0", ",") for part in rest.replace(",,", "\0").split(","))
    if scheme != "unix" or "\0" in text or not path or not _QEMU_OPTIONS.issuperset(options):
        hint = ", with ,, for a comma in PATH" if "," in text else ", e.g. unix:/tmp/vm.sock"
        raise UserError(f"{text!r} is not a socket address: expected unix:PATH{hint}")
    return _socket_path(path)


def format_unix_address(path: Path) -> str:
    """Return the address that `parse_unix_address` parses as `path`."""
    return f"unix:{path}".replace(",", ",,")


def parse_migration_address(text: str) -> Address:
    """Return the address in `tcp:HOST:PORT`, `tcp:[IPV6]:PORT` or `unix:PATH`.

    Raises `UserError` for anything else.
    """
    scheme, _, rest = text.partition(":")
    if scheme == "unix" and rest and "\0" not in rest:
        return UnixAddress(_socket_path(rest))
    host, _, port = rest.rpartition(":")
    if host[:1] == "[" and host[-1:] == "]":
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if scheme != "tcp" or not host or not (port.isascii() and port.isdigit() and len(port) < 6):
        raise UserError(f"{text!r} is not an address: {_EXPECTED}")
    if int(port) >= 1 << 16:
        raise UserError(f"there is no port {port}: {_EXPECTED}")
    return TcpAddress(host, int(port))


def _socket_path(path: str) -> Path:
    if len(os.fsencode(path)) > _PATH_LIMIT_BYTES:
        raise SocketPathTooLong(f"the socket path {path} is longer than {_PATH_LIMIT_BYTES} bytes")
    return Path(path)
