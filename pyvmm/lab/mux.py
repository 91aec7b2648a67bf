# SPDX-License-Identifier: Apache-2.0
"""Many byte streams over one link: the loop that both ends of the lab run.

A `Multiplexer` owns the link and a set of channels. Each channel has a *source* (a descriptor
whose bytes go over the link) and a *sink* (a descriptor that gets the bytes that arrive), which
may be the same socket. All descriptors are non-blocking and one `poll` waits for them all; a
source is read only while the peer has granted credit and the link's own buffer is short, and
credit is granted only for bytes a sink has taken. So every buffer here is bounded, and a stream
that nobody reads stops its own writer and nobody else's.

The standard library's `select.poll` is used directly because this loop also runs inside the lab,
where importing asyncio costs a second.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Callable
from typing import Any

from pyvmm.lab.frames import (
    CREDIT,
    MAX_NAME_BYTES,
    MAX_PAYLOAD_BYTES,
    WINDOW_BYTES,
    Decoder,
    Frame,
    FrameError,
    FrameType,
    encode,
)

_LINK_BUFFER_BYTES = 256 * 1024
_LINK_READ_BYTES = 2 * MAX_PAYLOAD_BYTES
_DRAIN_TURN_MS = 100
_ABOUT_NEW_CHANNELS = (FrameType.OPEN, FrameType.CONNECT, FrameType.CONNECTED)
_RETRY = (BlockingIOError, InterruptedError)


class LinkClosedError(Exception):
    """The other end of the link is gone."""


class Channel:
    """One channel's descriptors and what is under way on it."""

    def __init__(self, number: int, source: int | None, sink: int | None) -> None:
        self.number = number
        self.source = source
        self.sink = sink
        self.credit_bytes = WINDOW_BYTES
        self.pending = bytearray()
        self.ended = False  # the peer's stream has ended; `pending` is its rest
        self.attached = True  # False: what arrives waits for `Multiplexer.attach`

    @property
    def done(self) -> bool:
        return self.source is None and self.sink is None


class Multiplexer:
    """The link, its channels, and the loop's one turn."""

    def __init__(self, link: int, on_control: Callable[[dict[str, Any]], None]) -> None:
        os.set_blocking(link, False)
        self._link = link
        self._decoder = Decoder()
        self._outgoing = bytearray()
        self._on_control = on_control
        self.on_open: Callable[[int, str], None] | None = None
        self.on_connect: Callable[[int, str], None] | None = None
        self.on_connected: Callable[[int, str], None] | None = None
        self.channels: dict[int, Channel] = {}
        self._watched: dict[int, Callable[[], None]] = {}
        self.received_bytes = 0
        """Everything that ever came over the link: whoever waits can see that the peer lives."""

    def add(self, number: int, source: int | None = None, sink: int | None = None) -> Channel:
        """Start channel `number`; the descriptors become the multiplexer's to close."""
        for fd in {source, sink} - {None}:
            os.set_blocking(fd, False)  # type: ignore[arg-type]
        channel = self.channels[number] = Channel(number, source, sink)
        return channel

    def reserve(self, number: int) -> None:
        """Start channel `number` whose descriptors come later; what arrives until then is kept."""
        self.add(number).attached = False

    def attach(self, number: int, fd: int) -> None:
        """Give a reserved channel its socket."""
        os.set_blocking(fd, False)
        channel = self.channels[number]
        channel.source = channel.sink = fd
        channel.attached = True
        self._drain(channel)

    def abandon(self, number: int) -> None:
        """Give up channel `number` in both directions, whatever is still under way on it."""
        self._send(FrameType.CLOSE, number)
        self.forget(number)

    def forget(self, number: int) -> None:
        """Drop channel `number` without a word; its peer knows."""
        channel = self.channels.pop(number)
        for fd in {channel.source, channel.sink} - {None}:
            os.close(fd)  # type: ignore[arg-type]
        channel.source = channel.sink = None

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        """Call `ready` whenever `fd` is readable."""
        self._watched[fd] = ready

    def unwatch(self, fd: int) -> None:
        """No longer watch `fd`."""
        self._watched.pop(fd, None)

    def send_control(self, message: dict[str, Any]) -> None:
        """Queue a control message."""
        self._send(FrameType.CONTROL, 0, json.dumps(message).encode())

    def open(self, number: int, path: str, fd: int) -> None:
        """Start a channel here for socket `fd` and ask the peer to connect it to `path`."""
        self._send(FrameType.OPEN, number, os.fsencode(path))
        self.add(number, fd, fd)

    def connect(self, number: int, address: str) -> None:
        """Reserve a channel here and ask the peer to connect it to `address` on its side."""
        self._send(FrameType.CONNECT, number, os.fsencode(address))
        self.reserve(number)

    def answer_connect(self, number: int, refused: str = "") -> None:
        """Tell the peer, which asked, whether `number` is connected, or why not."""
        self._send(FrameType.CONNECTED, number, refused.encode(errors="replace")[:MAX_NAME_BYTES])

    @property
    def delivered(self) -> bool:
        """Nothing received waits for a sink."""
        return not any(channel.pending for channel in self.channels.values())

    def turn(self, timeout_ms: int | None = None) -> None:
        """Wait for one round of events and serve them. LinkClosedError, FrameError."""
        poller = select.poll()
        for fd, events in self._interest().items():
            poller.register(fd, events)
        ready = dict(poller.poll(timeout_ms))
        if self._link in ready:
            self._serve_link(ready[self._link])
        for channel in list(self.channels.values()):
            if channel.sink in ready and channel.pending:
                self._drain(channel)
            if channel.source in ready:
                self._fill(channel)
        for fd, callback in list(self._watched.items()):
            if fd in ready:
                callback()

    def drain_source(self, channel: Channel, patience_s: float | None = None) -> None:
        """End a source whose writers are all gone, once what it still holds has been sent.

        A reader outside that takes nothing for `patience_s` loses the rest; unless it is given
        the waiting goes on.
        """
        moved_at = time.monotonic()
        while channel.source is not None:
            poller = select.poll()
            poller.register(channel.source, select.POLLIN)
            if not poller.poll(0):
                self._end_source(channel)
            elif self._may_send(channel):
                self._fill(channel)
                moved_at = time.monotonic()
            elif patience_s is not None and time.monotonic() - moved_at > patience_s:
                self.abandon(channel.number)
                return
            else:
                self.turn(None if patience_s is None else _DRAIN_TURN_MS)

    def _may_send(self, channel: Channel) -> bool:
        return channel.credit_bytes > 0 and len(self._outgoing) < _LINK_BUFFER_BYTES

    def _interest(self) -> dict[int, int]:
        interest = {self._link: select.POLLIN | (select.POLLOUT if self._outgoing else 0)}
        for fd in self._watched:
            interest[fd] = select.POLLIN
        for channel in self.channels.values():
            if channel.source is not None and self._may_send(channel):
                interest[channel.source] = interest.get(channel.source, 0) | select.POLLIN
            if channel.sink is not None and channel.pending:
                interest[channel.sink] = interest.get(channel.sink, 0) | select.POLLOUT
        return interest

    def _serve_link(self, events: int) -> None:
        if events & select.POLLOUT:
            self._flush_link()
        if not events & (select.POLLIN | select.POLLHUP | select.POLLERR):
            return
        data = self._read_link()
        self.received_bytes += len(data)
        for frame in self._decoder.feed(data):
            self._receive(frame)

    def _read_link(self) -> bytes:
        """What has come, up to `_LINK_READ_BYTES`; a virtio-serial port gives 4 KiB at a time."""
        pieces: list[bytes] = []
        room = _LINK_READ_BYTES
        while room > 0:
            try:
                piece = os.read(self._link, room)
            except _RETRY:
                break
            except OSError as error:
                raise LinkClosedError(str(error)) from error
            if not piece:
                if pieces:
                    break  # told again by the next read
                raise LinkClosedError("end of file")
            pieces.append(piece)
            room -= len(piece)
        return b"".join(pieces)

    def _flush_link(self) -> None:
        try:
            written = os.write(self._link, self._outgoing[: 2 * MAX_PAYLOAD_BYTES])
        except _RETRY:
            return
        except OSError as error:
            raise LinkClosedError(str(error)) from error
        del self._outgoing[:written]

    def _send(self, kind: FrameType, number: int, payload: bytes = b"") -> None:
        self._outgoing += encode(Frame(kind, number, payload))

    def _receive(self, frame: Frame) -> None:
        if frame.type is FrameType.CONTROL:
            self._on_control(_control(frame.payload))
            return
        if frame.type in _ABOUT_NEW_CHANNELS:
            self._introduce(frame)
            return
        channel = self.channels.get(frame.channel)
        if channel is None:
            return  # crossed with our own CLOSE
        if frame.type is FrameType.DATA:
            self._take(channel, frame.payload)
        elif frame.type is FrameType.CREDIT:
            channel.credit_bytes += CREDIT.unpack(frame.payload)[0]
        else:
            if frame.type is FrameType.CLOSE:
                self._drop_source(channel)
            channel.ended = True
            self._drain(channel)

    def _introduce(self, frame: Frame) -> None:
        """Have the owner make, or go on making, a channel."""
        serve = {
            FrameType.OPEN: self.on_open,
            FrameType.CONNECT: self.on_connect,
            FrameType.CONNECTED: self.on_connected,
        }[frame.type]
        channel = self.channels.get(frame.channel)
        if frame.type is FrameType.CONNECTED:
            sensible = channel is not None and not channel.attached
        else:
            sensible = channel is None
        if serve is None or not sensible:
            raise FrameError(f"{frame.type.name} of channel {frame.channel} makes no sense here")
        serve(frame.channel, os.fsdecode(frame.payload))

    def _take(self, channel: Channel, data: bytes) -> None:
        if channel.sink is None and channel.attached:
            return  # crossed with our own CLOSE
        if channel.ended or len(channel.pending) + len(data) > WINDOW_BYTES:
            raise FrameError(f"channel {channel.number}: data beyond its end or its credit")
        channel.pending += data
        self._drain(channel)

    def _drain(self, channel: Channel) -> None:
        if not channel.attached:
            return
        if channel.pending and channel.sink is not None:
            try:
                written = os.write(channel.sink, channel.pending)
            except _RETRY:
                written = 0
            except OSError:
                self._send(FrameType.CLOSE, channel.number)
                channel.pending.clear()
                self._drop_source(channel)
                channel.ended = True
                written = 0
            del channel.pending[:written]
            if written and not channel.ended:
                self._send(FrameType.CREDIT, channel.number, CREDIT.pack(written))
        if channel.ended and not channel.pending:
            self._end_sink(channel)

    def _fill(self, channel: Channel) -> None:
        if channel.source is None or not self._may_send(channel):
            return
        try:
            data = os.read(channel.source, min(channel.credit_bytes, MAX_PAYLOAD_BYTES))
        except _RETRY:
            return
        except OSError:  # EIO: the last process on a pty's other side is gone
            data = b""
        if data:
            channel.credit_bytes -= len(data)
            self._send(FrameType.DATA, channel.number, data)
            if channel.number in self.channels:  # behind the others, for their turn at a full link
                self.channels[channel.number] = self.channels.pop(channel.number)
        else:
            self._end_source(channel)

    def _end_source(self, channel: Channel) -> None:
        self._send(FrameType.EOF, channel.number)
        self._drop_source(channel)

    def _drop_source(self, channel: Channel) -> None:
        fd, channel.source = channel.source, None
        if fd is not None and fd != channel.sink:
            os.close(fd)
        self._forget_if_done(channel)

    def _end_sink(self, channel: Channel) -> None:
        fd, channel.sink = channel.sink, None
        if fd is not None and fd == channel.source:
            _shut_down_writing(fd)
        elif fd is not None:
            os.close(fd)
        self._forget_if_done(channel)

    def _forget_if_done(self, channel: Channel) -> None:
        if channel.done and channel.attached:
            self.channels.pop(channel.number, None)


def _control(payload: bytes) -> dict[str, Any]:
    try:
        message = json.loads(payload)
    except ValueError as error:
        raise FrameError(f"CONTROL is no JSON: {error}") from error
    if not isinstance(message, dict):
        raise FrameError("CONTROL is no JSON object")
    return message


def _shut_down_writing(fd: int) -> None:
    import socket

    with socket.socket(fileno=os.dup(fd)) as both:
        try:
            both.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the other side has gone first
