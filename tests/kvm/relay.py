# SPDX-License-Identifier: Apache-2.0
"""A bad network: it stands between the two sides of a migration and does harm when it is told to.

    with Relay(here, there) as relay:
        ... migrate to `here`, have a destination wait at `there` ...
        relay.harm = Harm.CUT

It copies with a thread for each direction; what it is told takes effect with the next bytes.
"""

from __future__ import annotations

import contextlib
import enum
import random
import socket
import threading
from pathlib import Path

PIECE_BYTES = 1 << 16
TIMEOUT_S = 20.0


class Harm(enum.Enum):
    """What can happen to a connection."""

    NONE = "none"
    CUT = "cut"
    """It breaks for both sides."""
    TRUNCATED = "truncated"
    """The destination gets some bytes more and then the end; the source can go on sending."""
    FLIPPED = "flipped"
    """One bit on its way to the destination, or in its replies, is another."""


class Relay:
    """One connection from `here`, where it listens, to `there`; both are paths of sockets."""

    def __init__(self, here: Path, there: Path, choose: random.Random) -> None:
        self._choose = choose
        self._there = there
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(here))
        self._server.listen()
        self._streams: list[socket.socket] = []
        self._connected = threading.Event()
        self._threads = [threading.Thread(target=self._serve, name="relay")]
        self.harm = Harm.NONE
        self.harms_replies = False
        self.done = ""
        """What harm was done."""

    def __enter__(self) -> Relay:
        self._threads[0].start()
        return self

    def __exit__(self, *exc: object) -> None:
        for stream in (self._server, *self._streams):
            _hang_up(stream)
        for thread in self._threads:
            thread.join()
        for stream in (self._server, *self._streams):
            stream.close()

    def cut(self) -> None:
        """Break the connection now, whether or not anything moves, or as soon as there is one."""
        assert self._connected.wait(TIMEOUT_S)
        self.done = "cut"
        for stream in self._streams:
            _hang_up(stream)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # nobody came
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
            while data := source.recv(PIECE_BYTES):
                if self.harm is Harm.FLIPPED and replies == self.harms_replies and not self.done:
                    data = self._flip(data)
                if self.harm is Harm.TRUNCATED and not replies:
                    self._truncate(data, source, to)
                    return
                to.sendall(data)
            to.shutdown(socket.SHUT_WR)
        except OSError:  # who hangs up with bytes unread resets the connection, for both
            _hang_up(source)
            _hang_up(to)

    def _flip(self, data: bytes) -> bytes:
        bit = self._choose.randrange(8 * len(data))
        self.done = f"bit {bit} of {len(data)} bytes"
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)

    def _truncate(self, data: bytes, source: socket.socket, to: socket.socket) -> None:
        kept = self._choose.randrange(len(data))
        self.done = f"after {kept} of {len(data)} bytes"
        to.sendall(data[:kept])
        to.shutdown(socket.SHUT_WR)
        while source.recv(PIECE_BYTES):
            pass


def _hang_up(stream: socket.socket) -> None:
    with contextlib.suppress(OSError):
        stream.shutdown(socket.SHUT_RDWR)
