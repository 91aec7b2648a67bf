# SPDX-License-Identifier: Apache-2.0
"""A relay between the two sides of a migration that injects network failures.

    with FaultyRelay(here, there, random.Random(seed)) as relay:
        ... migrate to `here`, with a destination that listens at `there` ...
        relay.failure = InjectedFailure.TRUNCATED

One thread copies each direction; an injected failure applies to the next bytes that are copied.
"""

from __future__ import annotations

import contextlib
import enum
import random
import socket
import threading
from pathlib import Path

CHUNK_BYTES = 1 << 16
TIMEOUT_S = 20.0


class InjectedFailure(enum.Enum):
    """A failure of the connection."""

    NONE = "none"
    CUT = "cut"
    """The connection breaks for both sides."""
    TRUNCATED = "truncated"
    """The destination receives a few more bytes and then EOF; the source can still send."""
    FLIPPED = "flipped"
    """One bit of the stream, or of the replies, is inverted."""


class FaultyRelay:
    """Relay one connection from the socket path `here`, where it listens, to the one at `there`."""

    def __init__(self, here: Path, there: Path, random: random.Random) -> None:
        self._random = random
        self._there = there
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(here))
        self._server.listen()
        self._streams: list[socket.socket] = []
        self._connected = threading.Event()
        self._threads = [threading.Thread(target=self._serve, name="relay")]
        self.failure = InjectedFailure.NONE
        self.fail_replies = False
        self.injected = ""
        """Description of the failure that was injected, or empty."""

    def __enter__(self) -> FaultyRelay:
        self._threads[0].start()
        return self

    def __exit__(self, *exc: object) -> None:
        for stream in (self._server, *self._streams):
            _shut_down(stream)
        for thread in self._threads:
            thread.join()
        for stream in (self._server, *self._streams):
            stream.close()

    def cut(self) -> None:
        """Break the connection now, even if it is idle; if there is none yet, once it is made."""
        assert self._connected.wait(TIMEOUT_S)
        self.injected = "cut"
        for stream in self._streams:
            _shut_down(stream)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed before a source connected
            source, _ = self._server.accept()
            destination = socket.socket(socket.AF_UNIX)
            destination.connect(str(self._there))
            self._streams += [source, destination]
            self._connected.set()
            replies = threading.Thread(
                target=self._copy, args=(destination, source, True), name="relay replies"
            )
            self._threads.append(replies)
            replies.start()
            self._copy(source, destination, False)

    def _copy(self, source: socket.socket, to: socket.socket, replies: bool) -> None:
        try:
            while data := source.recv(CHUNK_BYTES):
                if (
                    self.failure is InjectedFailure.FLIPPED
                    and replies == self.fail_replies
                    and not self.injected
                ):
                    data = self._flip(data)
                if self.failure is InjectedFailure.TRUNCATED and not replies:
                    self._truncate(data, source, to)
                    return
                to.sendall(data)
            to.shutdown(socket.SHUT_WR)
        except OSError:  # closing with unread bytes resets the connection for both sides
            _shut_down(source)
            _shut_down(to)

    def _flip(self, data: bytes) -> bytes:
        bit = self._random.randrange(8 * len(data))
        self.injected = f"bit {bit} of {len(data)} bytes"
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)

    def _truncate(self, data: bytes, source: socket.socket, to: socket.socket) -> None:
        kept = self._random.randrange(len(data))
        self.injected = f"after {kept} of {len(data)} bytes"
        to.sendall(data[:kept])
        to.shutdown(socket.SHUT_WR)
        while source.recv(CHUNK_BYTES):
            pass


def _shut_down(stream: socket.socket) -> None:
    with contextlib.suppress(OSError):
        stream.shutdown(socket.SHUT_RDWR)
