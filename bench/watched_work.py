# SPDX-License-Identifier: Apache-2.0
"""One exit and one inflate without a VM, by who watches their events: the work of bench "watching".

    python -m bench.watched_work exit recorded 1000

does 1000 of them in a process of its own, for callgrind. An exit is a read of a register of a
virtio device by the path of a machine, without KVM_RUN. An inflate is a request of 3 pages in the
standard dialect: the driver's register writes and its ring, the device, the discard, and the
interrupt. While they are watched, the process also encodes the events, and writes them to a file in
memory or reads them as the server of a client does.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from bench.watchers import NO_BUFFER, RECORDED, UNWATCHED, WATCHED
from devices.balloon.device import BalloonDevice
from devices.balloon.dialects import STANDARD
from devices.bus import Bus
from devices.testing.balloon.driver import INFLATE
from devices.testing.balloon.requests import pfn_array
from devices.testing.board import Board
from devices.testing.driver import VirtioDriver
from devices.testing.ram import AnonymousRam
from devices.testing.recorders import RecordingTracer
from pyvmm.machine.vcpu_thread import GuestBuses
from pyvmm.trace.logging import LogTracer
from pyvmm.trace.recorder import Recorder
from pyvmm.trace.recording_file import RecordingFile
from pyvmm.trace.tracer import EventTracer
from pyvmm.trace.watch import EventWatch

WATCHERS = (NO_BUFFER, UNWATCHED, RECORDED, WATCHED)
EXIT, INFLATE_3 = "exit", "inflate"

_STATUS_OFFSET = 0x14  # device_status, in the common configuration of BAR 0
_READ_S = 0.1
_LAST_READ_S = 1.0  # in callgrind, the thread that takes the events takes its time
_MEMORY = "/dev/shm"


class TracedBalloon:
    """A balloon and its driver on a board, whose events are watched as `watcher` says."""

    def __init__(self, watcher: str) -> None:
        self._watcher = watcher
        self._tracer = LogTracer() if watcher == NO_BUFFER else EventTracer()
        device = BalloonDevice(STANDARD, AnonymousRam(), self._tracer)
        board = Board(device, cast(RecordingTracer, self._tracer))
        self._driver = VirtioDriver(board).start()
        pio = Bus("pio", tracer=self._tracer)
        self._buses = GuestBuses(pio, board.mmio, threading.Lock(), lambda: None)
        bar_gpa = board.function.bar_gpa(0)
        assert bar_gpa is not None
        self._status_gpa = bar_gpa + _STATUS_OFFSET
        self._request = [pfn_array([1, 2, 3])]

    def exit(self) -> None:
        """Read a register as a guest does."""
        self._buses.mmio_read(self._status_gpa, 1)

    def inflate(self) -> None:
        """Inflate by 3 pages."""
        self._driver.send(INFLATE, self._request)

    def work(self, kind: str) -> Callable[[], None]:
        """Return the function that does the work called `kind`."""
        return {EXIT: self.exit, INFLATE_3: self.inflate}[kind]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Have the events watched for the length of the block; all are read at its end."""
        if not isinstance(self._tracer, EventTracer) or self._watcher == UNWATCHED:
            yield
        elif self._watcher == RECORDED:
            with _recorded(self._tracer):
                yield
        else:
            with _read_by_a_client(self._tracer):
                yield


@contextmanager
def _recorded(tracer: EventTracer) -> Iterator[None]:
    with tempfile.TemporaryDirectory(dir=_MEMORY) as directory:
        recorder = Recorder(tracer, RecordingFile(Path(directory, "rec")))
        recorder.start()
        try:
            yield
        finally:
            recorder.close()
        assert recorder.total.events
        assert not recorder.total.dropped


@contextmanager
def _read_by_a_client(tracer: EventTracer) -> Iterator[None]:
    """Read the events as the server of x-trace-read does, on an event loop of its own."""
    started, ending = threading.Event(), threading.Event()
    events = dropped = 0

    async def read_all() -> None:
        nonlocal events, dropped
        watch, client = EventWatch(tracer), object()
        try:
            watch.start(client)
        finally:
            started.set()
        while True:
            # A read that begins after the end, however late this thread runs, finds the rest.
            last = ending.is_set()
            found = await watch.read(client, _LAST_READ_S if last else _READ_S)
            events, dropped = events + found.events, dropped + found.dropped
            b64encode(found.chunk or b"")
            if last and not found.chunk:
                break
        watch.stop(client)

    reader = threading.Thread(target=lambda: asyncio.run(read_all()))
    reader.start()
    try:
        started.wait()
        yield
    finally:
        ending.set()
        reader.join()
    assert events
    assert not dropped


def main(kind: str, watcher: str, count: str) -> None:
    """Do the work of `kind` `count` times while `watcher` watches."""
    balloon = TracedBalloon(watcher)
    work = balloon.work(kind)
    with balloon.watched():
        for _ in range(int(count)):
            work()


if __name__ == "__main__":
    main(*sys.argv[1:])
