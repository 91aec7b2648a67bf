# SPDX-License-Identifier: Apache-2.0
"""Addresses of sockets as users write them: `unix:PATH` and `tcp:HOST:PORT`.

A control socket is always a unix socket; a migration takes either form. Both parsers check the
syntax only: they neither look up names nor access files.
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
    path, *options = rest.split(",")
    if scheme != "unix" or not path or "\0" in path or not _QEMU_OPTIONS.issuperset(options):
        raise UserError(
            f"{text!r} is not a socket address: expected unix:PATH, e.g. unix:/tmp/vm.sock"
        )
    if len(os.fsencode(path)) > _PATH_LIMIT_BYTES:
        raise SocketPathTooLong(f"the socket path {path} is longer than {_PATH_LIMIT_BYTES} bytes")
    return Path(path)


def parse_migration_address(text: str) -> Address:
    """Return the address in `tcp:HOST:PORT`, `tcp:[IPV6]:PORT` or `unix:PATH`.

    Raises `UserError` for anything else.
    """
    scheme, _, rest = text.partition(":")
    if scheme == "unix":
        if not rest or "," in rest:
            raise UserError(f"{text!r} is not an address: {_EXPECTED}")
        return UnixAddress(parse_unix_address(text))
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
