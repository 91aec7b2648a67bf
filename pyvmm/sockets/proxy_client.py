# SPDX-License-Identifier: Apache-2.0
"""The client of the lab's proxy, through which a command in the lab reaches sockets of the host.

The agent's proxy (`pyvmm.lab.proxy`) listens at `lab_paths.proxy_socket`. Each connection to it
carries one request and one reply, both a little-endian u16 length and as many bytes. A request is a
JSON object with one key:

| request | reply |
| ---     | --- |
| `connect`: a migration address | empty: this connection now leads there; else the error |
| `unlisten`: a path in the lab | empty: the host has closed the listener that led to that path |
"""

from __future__ import annotations

import errno
import json
import socket
import struct
from pathlib import Path

LENGTH = struct.Struct("<H")
REPLY_TIMEOUT_S = 60.0
"""A safeguard: the host has shorter time-outs of its own, and reports them."""


def connect_through_proxy(proxy: Path, address: str) -> socket.socket:
    """Return a stream to `address` on the host. Raises `OSError` with the host's error message."""
    stream, error = _request(proxy, {"connect": address})
    if error:
        stream.close()
        raise OSError(errno.ECONNREFUSED, error)
    return stream


def close_forwarded_listener(proxy: Path, path: Path) -> None:
    """Close the host's listener whose connections are forwarded to `path`. Raises `OSError`."""
    _request(proxy, {"unlisten": str(path)})[0].close()


def _request(proxy: Path, request: dict[str, str]) -> tuple[socket.socket, str]:
    stream = socket.socket(socket.AF_UNIX)
    try:
        stream.settimeout(REPLY_TIMEOUT_S)
        stream.connect(str(proxy))
        text = json.dumps(request).encode()
        stream.sendall(LENGTH.pack(len(text)) + text)
        (length,) = LENGTH.unpack(_receive(stream, LENGTH.size))
        return stream, _receive(stream, length).decode(errors="replace")
    except BaseException:
        stream.close()
        raise


def _receive(stream: socket.socket, count: int) -> bytes:
    """Return exactly `count` bytes; those that follow belong to the connection."""
    data = b""
    while len(data) < count:
        piece = stream.recv(count - len(data))
        if not piece:
            raise ConnectionResetError(errno.ECONNRESET, "the lab closed the connection")
        data += piece
    return data
