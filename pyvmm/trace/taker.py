# SPDX-License-Identifier: Apache-2.0
"""The taker: the one thread that takes the events of a machine, for all of its sinks.

A sink is a recording or a client that watches. The thread starts with the first sink and ends with
the last, so without one there is neither a thread nor an event. It takes what there is at least as
often as each sink asks for, or when half of the buffer is used, encodes it once, as a chunk of the
recording format, and passes that to every sink. It holds no lock meanwhile, and no emitter waits
for it. If there is no memory for that, it tries again with the next events, or leaves out those it
has taken, whose sequence numbers are then missing.

Threads: event taker; `add` and `remove` on any other, and `remove` also on the taker's own.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from pyvmm.blocking.thread_limit import thread_limit_reported
from pyvmm.errors import ThreadNotStarted
from pyvmm.trace.recording_format import encode_chunk

if TYPE_CHECKING:
    from devices.ports import Tracer
    from pyvmm_native.events import Batch, EventBuffer
    from pyvmm_native.kvm_run import ExitCounters


class EventSink(Protocol):
    """Receives chunks of events, on the taker's thread."""

    @property
    def period_s(self) -> float:
        """Longest time for which an event waits to be put."""

    def put(self, chunk: bytes, batch: Batch) -> None:
        """Take the next chunk, which has the events of `batch`; must not wait."""

    def end(self) -> None:
        """Note that there is no further chunk."""


class TakenTracer(Protocol):
    """The tracer whose events are taken."""

    @property
    def native(self) -> EventBuffer:
        """The buffer of the events."""

    @property
    def quiet(self) -> Tracer:
        """The tracer that receives the events of the taker itself."""

    @property
    def exits(self) -> Callable[[], Iterable[ExitCounters]]:
        """Returns the counters of exits, by vCPU."""

    def start(self) -> int:
        """Keep events from now on; return an eventfd that is readable when there are many."""

    def stop(self) -> Batch | None:
        """Keep no further events; return those that wait."""


class EventTaker:
    """Takes the events of `tracer` while there are sinks."""

    def __init__(self, tracer: TakenTracer) -> None:
        self._tracer = tracer
        self._lock = threading.Lock()
        self._sinks: list[EventSink] = []
        self._removed: list[EventSink] = []
        self._counted: dict[int, tuple[int, ...]] = {}
        self._request_fd = -1

    def add(self, sink: EventSink) -> None:
        """Pass all events from now on to `sink`, until `remove`.

        Raises `ThreadNotStarted`, MemoryError and OSError.
        """
        with self._lock:
            if self._sinks:
                self._sinks.append(sink)
                os.eventfd_write(self._request_fd, 1)  # for its period
                return
            request_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            try:
                self._start(request_fd)
            except BaseException:
                os.close(request_fd)
                raise
            self._request_fd = request_fd
            self._sinks.append(sink)

    def _start(self, request_fd: int) -> None:
        """Start the thread, which waits for the lock."""
        wake_fd = self._tracer.start()
        thread = threading.Thread(
            target=self._run, args=(wake_fd, request_fd), name="event-taker", daemon=True
        )
        try:
            with thread_limit_reported():
                thread.start()
        except ThreadNotStarted:
            self._tracer.stop()
            raise

    def remove(self, sink: EventSink) -> None:
        """Pass the events so far to `sink`, and no others; `EventSink.end` follows soon."""
        with self._lock:
            if sink in self._sinks and sink not in self._removed:
                self._removed.append(sink)
                os.eventfd_write(self._request_fd, 1)

    def hurry(self) -> None:
        """Pass the events so far to all sinks soon."""
        with self._lock:
            if self._sinks:
                os.eventfd_write(self._request_fd, 1)

    def _run(self, wake_fd: int, request_fd: int) -> None:
        wakers = select.poll()
        wakers.register(wake_fd, select.POLLIN)
        wakers.register(request_fd, select.POLLIN)
        while True:
            with self._lock:
                period_s = min(sink.period_s for sink in self._sinks)
            for fd, _ in wakers.poll(period_s * 1000):
                os.eventfd_read(fd)
            self._emit_exits()
            with self._lock:
                sinks = tuple(self._sinks)
                removed, self._removed = self._removed, []
                self._sinks = [sink for sink in sinks if sink not in removed]
                last = not self._sinks
                try:
                    batch = self._tracer.stop() if last else self._tracer.native.take()
                except MemoryError:
                    batch = None
                if last:
                    os.close(request_fd)
                    self._counted.clear()
            if batch is not None:
                with contextlib.suppress(MemoryError):
                    chunk = encode_chunk(batch)
                    for sink in sinks:
                        sink.put(chunk, batch)
            for sink in removed:
                sink.end()
            if last:
                return

    def _emit_exits(self) -> None:
        for vcpu, counters in enumerate(self._tracer.exits()):
            counts = counters.counts
            if self._counted.get(vcpu) == counts:
                continue
            self._counted[vcpu] = counts
            fast_path, pio, mmio, interrupted, other = counts
            self._tracer.quiet.event(
                "vm_exits",
                vcpu=vcpu,
                fast_path=fast_path,
                pio=pio,
                mmio=mmio,
                interrupted=interrupted,
                other=other,
            )
