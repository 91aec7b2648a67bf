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
from collections.abc import Callable
from typing import Any

from pyvmm.lab.frames import (
    CREDIT,
    MAX_PAYLOAD_BYTES,
    WINDOW_BYTES,
    Decoder,
    Frame,
    FrameError,
    FrameType,
    encode,
)

_LINK_BUFFER_BYTES = 256 * 1024
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

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        """Call `ready` whenever `fd` is readable."""
        self._watched[fd] = ready

    def send_control(self, message: dict[str, Any]) -> None:
        """Queue a control message."""
        self._send(FrameType.CONTROL, 0, json.dumps(message).encode())

    def open(self, number: int, path: str, fd: int) -> None:
        """Start a channel here for socket `fd` and ask the peer to connect it to `path`."""
        self._send(FrameType.OPEN, number, path.encode())
        self.add(number, fd, fd)

    @property
    def idle(self) -> bool:
        """Nothing received waits for a sink and nothing waits for the link."""
        return not self._outgoing and not any(c.pending for c in self.channels.values())

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

    def drain_source(self, channel: Channel, *, patient: bool) -> None:
        """End a source whose writers are all gone, once what it still holds has been read.

        `patient` waits for a slow reader outside; otherwise what it has no room for is dropped.
        """
        while channel.source is not None:
            poller = select.poll()
            poller.register(channel.source, select.POLLIN)
            if self._may_send(channel) and poller.poll(0):
                self._fill(channel)
            elif patient and poller.poll(0):
                self.turn()
            else:
                self._end_source(channel)

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
        try:
            data = os.read(self._link, 2 * MAX_PAYLOAD_BYTES)
        except _RETRY:
            return
        except OSError as error:
            raise LinkClosedError(str(error)) from error
        if not data:
            raise LinkClosedError("end of file")
        self.received_bytes += len(data)
        for frame in self._decoder.feed(data):
            self._receive(frame)

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
        if frame.type is FrameType.OPEN:
            if self.on_open is None or frame.channel in self.channels:
                raise FrameError(f"OPEN of channel {frame.channel} makes no sense here")
            self.on_open(frame.channel, frame.payload.decode())
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
