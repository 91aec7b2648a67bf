# SPDX-License-Identifier: Apache-2.0
"""For a command in the lab: sockets outside, by way of the agent.

The agent (`pyvmm.lab.proxy`) listens at `places.proxy_socket`. Each connection to it carries one
request and one answer, both a u16 length in little-endian and as many bytes. Requests are JSON
objects with one key:

| request | answer |
| ---     | --- |
| `connect`: a migration address | empty: the connection now is the one asked for; else why not |
| `unlisten`: a path inside | empty: nobody is listened for any more on behalf of that path |
"""

from __future__ import annotations

import errno
import json
import socket
import struct
from pathlib import Path

LENGTH = struct.Struct("<H")
ANSWER_TIMEOUT_S = 60.0
"""The other side has time-outs of its own, and says when one has passed."""


def connect_through_proxy(door: Path, address: str) -> socket.socket:
    """A stream to `address` outside. OSError, in the words of the system outside."""
    stream, refused = _ask(door, {"connect": address})
    if refused:
        stream.close()
        raise OSError(errno.ECONNREFUSED, refused)
    return stream


def close_forwarded_listener(door: Path, path: Path) -> None:
    """Have nobody sent to `path` any more. OSError."""
    _ask(door, {"unlisten": str(path)})[0].close()


def _ask(door: Path, request: dict[str, str]) -> tuple[socket.socket, str]:
    stream = socket.socket(socket.AF_UNIX)
    try:
        stream.settimeout(ANSWER_TIMEOUT_S)
        stream.connect(str(door))
        text = json.dumps(request).encode()
        stream.sendall(LENGTH.pack(len(text)) + text)
        (length,) = LENGTH.unpack(_receive(stream, LENGTH.size))
        return stream, _receive(stream, length).decode(errors="replace")
    except BaseException:
        stream.close()
        raise


def _receive(stream: socket.socket, count: int) -> bytes:
    """`count` bytes and not one more: what follows belongs to the connection."""
    data = b""
    while len(data) < count:
        piece = stream.recv(count - len(data))
        if not piece:
            raise ConnectionResetError(errno.ECONNRESET, "the lab hung up")
        data += piece
    return data
