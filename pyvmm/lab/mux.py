# SPDX-License-Identifier: Apache-2.0
"""Many byte streams over one link: the event loop that both ends of the lab run.

A `Multiplexer` owns one end of the link and a set of channels. Each channel has a *source* (a
descriptor whose bytes go over the link) and a *sink* (a descriptor that takes the bytes that
arrive), which may be the same socket. All descriptors are non-blocking, and one `poll` waits for
them all. A source is read only while the peer has granted credit and the link's own buffer is
short, and credit is granted only for bytes that a sink has taken. So every buffer is bounded, and a
stream without a reader blocks only its own writer. A socket may end one direction and keep the
other; one that is closed as a whole closes the one at the other end.

The loop uses `select.poll` directly because it also runs inside the lab, where importing asyncio
takes a second.
"""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from pyvmm.lab.frame_link import RETRY, FrameLink
from pyvmm.lab.frames import (
    CREDIT,
    MAX_NAME_BYTES,
    MAX_PAYLOAD_BYTES,
    WINDOW_BYTES,
    Frame,
    FrameError,
    FrameType,
)

_DRAIN_POLL_MS = 100

OnRequest = Callable[[int, str], None]
"""Called with a channel number and the path or address that the peer asks to connect it to."""


class Channel:
    """The descriptors of one channel and the data in flight on it."""

    def __init__(self, number: int, source: int | None, sink: int | None) -> None:
        self.number = number
        self.source = source
        self.sink = sink
        self.credit_bytes = WINDOW_BYTES
        self.pending = bytearray()
        self.ended = False  # the peer's stream has ended; `pending` is the rest of it
        self.attached = True  # False: incoming data waits for `Multiplexer.attach`
        self.is_socket = source is not None and source == sink

    @property
    def half_closed(self) -> bool:
        """True for a socket whose stream has ended; it may still take data, or have hung up."""
        return self.is_socket and self.source is None

    @property
    def done(self) -> bool:
        return self.source is None and self.sink is None


class Multiplexer:
    """One end of the link, its channels, and one turn of the loop.

    `on_control` gets every control message. `on_open` and `on_connect` serve the peer's requests
    for new channels; a request without its callback is a FrameError.
    """

    def __init__(
        self,
        link: int,
        on_control: Callable[[dict[str, Any]], None],
        *,
        on_open: OnRequest | None = None,
        on_connect: OnRequest | None = None,
    ) -> None:
        self._link = FrameLink(link)
        self._on_control = on_control
        self._on_open = on_open
        self._on_connect = on_connect
        self._connecting: dict[int, Callable[[str], None]] = {}
        self.channels: dict[int, Channel] = {}
        self._watched: dict[int, Callable[[], None]] = {}

    @property
    def received_bytes(self) -> int:
        """Total number of bytes received over the link; while it grows, the peer is alive."""
        return self._link.received_bytes

    def add(self, number: int, source: int | None = None, sink: int | None = None) -> Channel:
        """Start channel `number`; the multiplexer closes the descriptors."""
        for fd in {source, sink} - {None}:
            os.set_blocking(fd, False)  # type: ignore[arg-type]
        channel = self.channels[number] = Channel(number, source, sink)
        return channel

    def reserve(self, number: int) -> None:
        """Start channel `number`; incoming data is kept until `attach` supplies a descriptor."""
        self.add(number).attached = False

    def attach(self, number: int, fd: int) -> None:
        """Give a reserved channel its socket."""
        os.set_blocking(fd, False)
        channel = self.channels[number]
        channel.source = channel.sink = fd
        channel.attached = channel.is_socket = True
        self._drain(channel)

    def abandon(self, number: int) -> None:
        """Close channel `number` in both directions and drop the data in flight."""
        self._send(FrameType.CLOSE, number)
        self.forget(number)

    def forget(self, number: int) -> None:
        """Drop channel `number` without notifying the peer, which has already closed it."""
        channel = self.channels.pop(number)
        for fd in {channel.source, channel.sink} - {None}:
            os.close(fd)  # type: ignore[arg-type]
        channel.source = channel.sink = None

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        """Call `ready` whenever `fd` is readable."""
        self._watched[fd] = ready

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`."""
        self._watched.pop(fd, None)

    def send_control(self, message: dict[str, Any]) -> None:
        """Queue a control message."""
        self._send(FrameType.CONTROL, 0, json.dumps(message).encode())

    def open(self, number: int, path: str, fd: int) -> None:
        """Start a channel for socket `fd` and ask the peer to connect it to `path`."""
        self._send(FrameType.OPEN, number, os.fsencode(path))
        self.add(number, fd, fd)

    def connect(self, number: int, address: str, on_result: Callable[[str], None]) -> None:
        """Reserve a channel and ask the peer to connect it to `address` on its side.

        `on_result` is called with the peer's error message, empty on success, and must attach or
        forget the channel.
        """
        self._send(FrameType.CONNECT, number, os.fsencode(address))
        self._connecting[number] = on_result
        self.reserve(number)

    def reply_connect(self, number: int, error: str = "") -> None:
        """Tell the peer that `number` is connected, or the `error` if it is not."""
        self._send(FrameType.CONNECTED, number, error.encode(errors="replace")[:MAX_NAME_BYTES])

    @property
    def delivered(self) -> bool:
        """True if the sinks have taken all received data."""
        return not any(channel.pending for channel in self.channels.values())

    def turn(self, timeout_ms: int | None = None) -> None:
        """Wait for one round of events and serve them. Raises LinkClosedError, FrameError."""
        poller = select.poll()
        for fd, events in self._interest().items():
            poller.register(fd, events)
        ready = dict(poller.poll(timeout_ms))
        if self._link.fd in ready:
            self._serve_link(ready[self._link.fd])
        for channel in list(self.channels.values()):
            if channel.sink in ready and channel.pending:
                self._drain(channel)
            if channel.source in ready:
                self._fill(channel)
            if channel.half_closed and ready.get(channel.sink or -1, 0) & select.POLLHUP:
                self._hang_up(channel)
        for fd, callback in list(self._watched.items()):
            if fd in ready:
                callback()

    def drain_source(self, channel: Channel, timeout_s: float | None = None) -> None:
        """Send the remaining data of a source, then end it; all of its writers have closed it.

        What the peer has not taken after `timeout_s` is dropped; without a time-out this waits
        indefinitely.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while channel.source is not None:
            poller = select.poll()
            poller.register(channel.source, select.POLLIN)
            if not poller.poll(0):
                self._end_source(channel)
            elif self._may_send(channel):
                self._fill(channel)
            elif until is not None and time.monotonic() > until:
                self.abandon(channel.number)
                return
            else:
                self.turn(None if until is None else _DRAIN_POLL_MS)

    def _may_send(self, channel: Channel) -> bool:
        return channel.credit_bytes > 0 and self._link.has_room

    def _interest(self) -> dict[int, int]:
        link_events = select.POLLIN | (select.POLLOUT if self._link.has_outgoing else 0)
        interest = {self._link.fd: link_events}
        for fd in self._watched:
            interest[fd] = select.POLLIN
        for channel in self.channels.values():
            if channel.source is not None and self._may_send(channel):
                interest[channel.source] = interest.get(channel.source, 0) | select.POLLIN
            if channel.sink is not None and (channel.pending or channel.half_closed):
                events = select.POLLOUT if channel.pending else 0  # POLLHUP is always reported
                interest[channel.sink] = interest.get(channel.sink, 0) | events
        return interest

    def _serve_link(self, events: int) -> None:
        if events & select.POLLOUT:
            self._link.flush()
        if events & (select.POLLIN | select.POLLHUP | select.POLLERR):
            for frame in self._link.read():
                self._receive(frame)

    def _send(self, kind: FrameType, number: int, payload: bytes = b"") -> None:
        self._link.send(Frame(kind, number, payload))

    def _receive(self, frame: Frame) -> None:
        number = frame.channel
        match frame.type:
            case FrameType.CONTROL:
                self._on_control(_control(frame.payload))
            case FrameType.OPEN:
                self._serve_request(frame, self._on_open)
            case FrameType.CONNECT:
                self._serve_request(frame, self._on_connect)
            case FrameType.CONNECTED:
                if number not in self._connecting:
                    raise FrameError(f"CONNECTED for channel {number}, which is not connecting")
                self._connecting.pop(number)(os.fsdecode(frame.payload))
            case _:
                if number in self.channels:  # else it crossed with our own CLOSE
                    self._receive_for(self.channels[number], frame)

    def _receive_for(self, channel: Channel, frame: Frame) -> None:
        if frame.type is FrameType.DATA:
            self._take(channel, frame.payload)
        elif frame.type is FrameType.CREDIT:
            channel.credit_bytes += CREDIT.unpack(frame.payload)[0]
        else:
            if frame.type is FrameType.CLOSE:
                self._drop_source(channel)
            channel.ended = True
            self._drain(channel)

    def _serve_request(self, frame: Frame, serve: OnRequest | None) -> None:
        if serve is None:
            raise FrameError(f"{frame.type.name} is not served at this end of the link")
        if frame.channel in self.channels:
            raise FrameError(f"{frame.type.name} of channel {frame.channel}, which is in use")
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
            except RETRY:
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
        except RETRY:
            return
        except OSError:  # EIO: the last process has closed the pty
            data = b""
        if data:
            channel.credit_bytes -= len(data)
            self._send(FrameType.DATA, channel.number, data)
            if channel.number in self.channels:  # to the end: a full link serves all in turn
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

    def _hang_up(self, channel: Channel) -> None:
        """Close a channel whose socket was closed: the peer's end of it is closed, too."""
        self._send(FrameType.CLOSE, channel.number)
        channel.pending.clear()
        channel.ended = True
        self._end_sink(channel)

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
        raise FrameError(f"CONTROL is not JSON: {error}") from error
    if not isinstance(message, dict):
        raise FrameError("CONTROL is not a JSON object")
    return message


def _shut_down_writing(fd: int) -> None:
    with socket.socket(fileno=os.dup(fd)) as both:
        try:
            both.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the peer has closed already
