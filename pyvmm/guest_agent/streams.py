# SPDX-License-Identifier: Apache-2.0
"""The host's end of a command's virtio-console ports, and what they are connected to.

`PortStream` is the end of one port. The device gives it the guest's output under the device lock,
and it keeps at most `MAX_WAITING_BYTES`; the rest stays in the guest. The event loop takes the
output and passes it to an `OutputSink`, as fast as that accepts it: `DescriptorSink` writes to a
file descriptor from a thread of its own, `MemorySink` collects. Input is offered to the guest on
the event loop; `DescriptorSource` reads it from a file descriptor, only while the guest takes it.
So a slow reader on either side stops the writer on the other, and nothing grows.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from pyvmm.blocking.thread_limit import thread_limit_reported
from pyvmm.machine.coalesced_callback import CoalescedCallback
from pyvmm.standard_streams.descriptors import write_all

if TYPE_CHECKING:
    import asyncio

    from devices.console.port import ConsolePort
    from pyvmm.machine.event_loop import EventLoop
    from pyvmm_native.chain_reader import ChainReader

MAX_WAITING_BYTES = 1 << 18
"""Output of the guest that waits in a stream, and input that waits for the guest."""
READ_BYTES = 1 << 16
PIPE_BYTES = 1 << 18
"""Size of pipes that streams are connected to: each time one is full or empty, processes change."""

Soon = Callable[..., None]
"""Calls a function on the event loop, from any thread."""


def soon_on(loop: EventLoop) -> Soon:
    """Return the function that calls others on `loop`; it does nothing once that is closed."""

    def soon(callback: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(callback, *args)

    return soon


class OutputSink(Protocol):
    """Takes the output of a command; used on the event loop."""

    @property
    def busy(self) -> bool:
        """True while no more output can be taken; `on_ready` is called at its end."""

    @property
    def error(self) -> OSError | None:
        """The reason why output can no longer be taken."""

    def put(self, data: bytes) -> None:
        """Take `data`; called only while the sink is neither busy nor failed."""


class MemorySink:
    """Collects output in `data`."""

    busy = False
    error: OSError | None = None

    def __init__(self) -> None:
        self.data = bytearray()

    def put(self, data: bytes) -> None:
        """Append `data`."""
        self.data += data


def _enlarge_pipe(fd: int) -> None:
    """Let the pipe `fd` hold `PIPE_BYTES`, if it is a pipe and the host allows that."""
    with contextlib.suppress(OSError):
        if fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) < PIPE_BYTES:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


class DescriptorSink:
    """Writes output to the file descriptor `fd`, which may block, on a thread of its own.

    `on_ready` is called on the event loop, through `soon`, when a write has ended.

    Threads: event loop.
    """

    def __init__(self, fd: int, soon: Soon, on_ready: Callable[[], None]) -> None:
        self._fd = fd
        self._soon = soon
        self._on_ready = on_ready
        self.busy = False
        self.error: OSError | None = None
        self._writes: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        _enlarge_pipe(fd)
        thread = threading.Thread(target=self._run, name=f"output-writer-{fd}", daemon=True)
        with thread_limit_reported():
            thread.start()

    def put(self, data: bytes) -> None:
        """Start to write `data`."""
        self.busy = True
        self._writes.put(data)

    def close(self) -> None:
        """End the thread once everything has been written."""
        self._writes.put(b"")

    def _run(self) -> None:
        while data := self._writes.get():
            error = None
            try:
                write_all(self._fd, data)
            except OSError as failure:
                error = failure
            self._soon(self._written, error)

    def _written(self, error: OSError | None) -> None:
        self.busy = False
        self.error = error
        self._on_ready()


class DescriptorSource:
    """Reads the file descriptor `fd` and passes what it reads to `on_data`, b"" at the end.

    It reads from `resume` to `pause`. A terminal, a pipe or a socket is read when it is readable, a
    file at once. The descriptor stays blocking: its open file may be shared with other programs.

    Threads: event loop.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fd: int, on_data: Callable[[bytes], None]
    ) -> None:
        self._loop = loop
        self._fd = fd
        self._on_data = on_data
        self._reading = False
        self._ended = False
        self._always_readable = False
        _enlarge_pipe(fd)

    def resume(self) -> None:
        """Read from now on."""
        if self._reading or self._ended:
            return
        self._reading = True
        try:
            self._loop.add_reader(self._fd, self._readable)
        except PermissionError:  # epoll(7) supports neither regular files nor /dev/null
            self._always_readable = True
            self._loop.call_soon(self._readable)

    def pause(self) -> None:
        """Read no more until `resume`."""
        if self._reading and not self._always_readable:
            self._loop.remove_reader(self._fd)
        self._reading = False

    def close(self) -> None:
        """Read no more."""
        self.pause()
        self._ended = True

    def _readable(self) -> None:
        if not self._reading:
            return
        try:
            data = os.read(self._fd, READ_BYTES)
        except (BlockingIOError, InterruptedError):
            data = None
        except OSError:  # the terminal has hung up
            data = b""
        if data is not None:
            if not data:
                self.close()
            self._on_data(data)
        if self._always_readable and self._reading:
            self._loop.call_soon(self._readable)


class PortStream:
    """The host's end of `port`, from its creation to `close`; satisfies `PortHost`.

    `on_change` is called on the event loop, through `soon`, when there is output, when there may be
    room for input, and when the guest has opened or closed the port. `lock` is the device lock.
    `received_bytes` counts the output so far, `sent_bytes` the input, what waits included.

    Threads: event loop; the methods of `PortHost` with the device lock held.
    """

    def __init__(
        self, port: ConsolePort, lock: threading.Lock, soon: Soon, on_change: Callable[[], None]
    ) -> None:
        self.port = port
        self._lock = lock
        self._changed = CoalescedCallback(on_change, soon)
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._stalled = False  # the device was refused a part of the output
        self._input = bytearray()
        self.sent_bytes = 0
        self.received_bytes = 0
        self.connected = True
        with lock:
            port.connect(self)

    # As PortHost.
    def write(self, output: ChainReader) -> int:
        """Keep output while there is room; returns the number of bytes kept."""
        accepted = output.read(MAX_WAITING_BYTES - self._waiting_bytes)
        self._stalled = len(accepted) < len(output)
        if accepted:
            self._waiting.append(accepted)
            self._waiting_bytes += len(accepted)
            self.received_bytes += len(accepted)
            self._changed()
        return len(accepted)

    def room_available(self) -> None:
        """Offer more input soon."""
        self._changed()

    def guest_open_changed(self, is_open: bool) -> None:
        """Report the change."""
        self._changed()

    def unplugged(self) -> None:
        """Note that the port is gone."""
        self.connected = False
        self._changed()

    # On the event loop.
    @property
    def guest_open(self) -> bool:
        """True while a program in the guest has the port open."""
        return self.port.guest_open

    @property
    def has_output(self) -> bool:
        """True while output waits to be taken."""
        return self._waiting_bytes > 0

    def take(self) -> bytes:
        """Return the output that has arrived, and let the guest send more."""
        with self._lock:
            data = b"".join(self._waiting)
            self._waiting.clear()
            self._waiting_bytes = 0
            if self._stalled:
                self._stalled = False
                self.port.resume()
        return data

    @property
    def room_bytes(self) -> int:
        """The number of bytes of input that may be sent now."""
        return MAX_WAITING_BYTES - len(self._input)

    def send(self, data: bytes) -> None:
        """Send input, now or when the guest takes it; at most `room_bytes` unless it is known."""
        self._input += data
        self.sent_bytes += len(data)
        self.advance()

    def advance(self) -> None:
        """Offer the guest the input that waits."""
        if not self.connected:
            self._input.clear()
            return
        with self._lock:
            while self._input:
                offered = bytes(self._input[:READ_BYTES])
                accepted = self.port.offer(offered)
                del self._input[:accepted]
                if accepted < len(offered):
                    return

    def close(self) -> None:
        """Disconnect from the port; output is discarded from now on."""
        if self.connected:
            self.connected = False
            with self._lock:
                self.port.disconnect()
