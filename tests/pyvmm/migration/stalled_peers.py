# SPDX-License-Identifier: Apache-2.0
"""Peers of a migration that follow the protocol up to one step, and stall there.

A stalled peer is silent, or it dribbles: it sends, or takes, a byte from time to time and never
completes the message. Each runs in a thread until `stop`.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeVar

from pyvmm.migration import messages
from pyvmm.migration.messages import FromDestination, FromSource
from pyvmm.migration.page_channel import SUM_BYTES
from pyvmm.migration.stream import DestinationReader, SourceReader
from pyvmm.sockets.link import shut_down
from pyvmm.state.records import Kind
from pyvmm_native import PAGE_BYTES
from pyvmm_native.checksum import Checksum
from tests.pyvmm.migration.migration_guest import config_of

Mode = Literal["silent", "dribbling"]
RAM_MIB = 64
_M = TypeVar("_M")


class Stopped(Exception):
    """The test is over."""


class StalledPeer(threading.Thread):
    """A peer that stalls at `step`; `stalled` is set when it does."""

    def __init__(self, step: str, mode: Mode, interval_s: float) -> None:
        super().__init__(name=f"peer stalled at {step}", daemon=True)
        self.stalled = threading.Event()
        self._step = step
        self._mode = mode
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._stream = socket.socket()

    def stop(self) -> None:
        """End the thread and close the connection."""
        self._stopped.set()
        shut_down(self._stream)
        self.join(10)
        self._stream.close()

    def run(self) -> None:
        with contextlib.suppress(Stopped, OSError):
            self.follow_protocol()

    def follow_protocol(self) -> None:
        raise NotImplementedError

    def send(self, step: str, data: bytes) -> None:
        """Send a message, unless this is the step to stall at."""
        if step == self._step:
            self._stall(data[:-1])
        self._stream.sendall(data)

    def _stall(self, data: bytes) -> None:
        self.stalled.set()
        if self._mode == "dribbling":
            for byte in data:
                self._pause()
                self._stream.send(bytes([byte]))
        self._stopped.wait()
        raise Stopped

    def stall_reading(self, step: str) -> None:
        """Take nothing more, or a byte from time to time, if this is the step to stall at."""
        if step != self._step:
            return
        self.stalled.set()
        while self._mode == "dribbling":
            self._pause()
            self._stream.recv(1)
        self._stopped.wait()
        raise Stopped

    def _pause(self) -> None:
        if self._stopped.wait(self._interval_s):
            raise Stopped


class StalledDestination(StalledPeer):
    """A destination that listens at `path`, for a machine with parts of the kinds `kinds`.

    Its steps: accept, welcome, pages, round-ack, restored and running.
    """

    def __init__(
        self,
        path: Path,
        step: str,
        mode: Mode,
        interval_s: float,
        kinds: Mapping[str, Kind] = MappingProxyType({}),
    ) -> None:
        super().__init__(step, mode, interval_s)
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self._reader = SourceReader(kinds)
        self.start()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        super().stop()

    def follow_protocol(self) -> None:
        self._stream, _ = self._server.accept()
        self.stall_reading("accept")
        self._expect(messages.Hello)
        self.send("welcome", messages.Welcome().record().encode())
        self.stall_reading("pages")
        while not isinstance(message := self._receive(), messages.Ready):
            if isinstance(message, messages.Pages):
                self._skip(message.count * PAGE_BYTES + SUM_BYTES)
            if isinstance(message, messages.RoundEnd):
                self.send("round-ack", messages.RoundAck(message.number).record().encode())
        self.send("restored", messages.StateRestored().record().encode())
        self._expect(messages.Commit)
        self.send("running", messages.Running().record().encode())

    def _receive(self) -> FromSource:
        while (message := self._reader.next()) is None:
            data = self._stream.recv(self._reader.wanted_bytes)
            if not data:
                raise Stopped
            self._reader.feed(data)
        return message

    def _skip(self, size: int) -> None:
        while size:
            data = self._stream.recv(min(size, 1 << 16))
            if not data:
                raise Stopped
            size -= len(data)

    def _expect(self, kind: type[_M]) -> _M:
        message = self._receive()
        assert isinstance(message, kind)
        return message


class StalledSource(StalledPeer):
    """A source that connects with `stream`.

    Its steps: hello, pages (before any), page (in the message of one), contents (in those of that
    page), round-end, ready and commit.
    """

    def __init__(self, stream: socket.socket, step: str, mode: Mode, interval_s: float) -> None:
        super().__init__(step, mode, interval_s)
        self._stream = stream
        stream.settimeout(None)
        self._reader = DestinationReader()
        self.start()

    def follow_protocol(self) -> None:
        self.send("hello", messages.Hello(config_of(RAM_MIB)).record().encode())
        self._expect(messages.Welcome)
        self.send("pages", b"")
        pages = messages.Pages(0, b"\x01" + bytes(messages.BITMAP_BYTES - 1))
        self.send("page", pages.record().encode())
        contents = b"x" * PAGE_BYTES
        checksum = Checksum("crc32c").of(contents)
        self.send("contents", contents + checksum.to_bytes(SUM_BYTES, "little"))
        self.send("round-end", messages.RoundEnd(1).record().encode())
        self._expect(messages.RoundAck)
        self.send("ready", messages.Ready(1, 0, True).record().encode())
        self._expect(messages.StateRestored)
        self.send("commit", messages.Commit().record().encode())
        self._expect(messages.Running)

    def _receive(self) -> FromDestination:
        while (message := self._reader.next()) is None:
            data = self._stream.recv(1 << 16)
            if not data:
                raise Stopped
            self._reader.feed(data)
        return message

    def _expect(self, kind: type[_M]) -> _M:
        message = self._receive()
        assert isinstance(message, kind), message
        return message


class StalledHandshake(StalledPeer):
    """A client of TLS that stalls in its first message."""

    CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(505)

    def __init__(self, stream: socket.socket, mode: Mode, interval_s: float) -> None:
        super().__init__("handshake", mode, interval_s)
        self._stream = stream
        self.start()

    def follow_protocol(self) -> None:
        self.send("handshake", self.CLIENT_HELLO)
