# SPDX-License-Identifier: Apache-2.0
"""The recorder: a thread that takes the events of a machine and writes them to a file.

It takes what there is every 500 ms, or when half of the buffer is used, so a VMM that is killed
loses at most the last 500 ms. It holds no lock while it encodes and writes. When the file cannot be
written any more, the recording ends and the guest runs on.

Threads: recorder; `start` and `close` on the thread that owns the machine.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.trace.recording_file import RecordingFile
from pyvmm.trace.tracer import EventTracer

if TYPE_CHECKING:
    from pyvmm_native.kvm_run import ExitCounters

FLUSH_PERIOD_S = 0.5
"""Longest time for which an event waits to be written."""
END_TIMEOUT_S = 5.0
"""Longest time for which the end of the VM waits for the last write."""

_log = logging.getLogger(__name__)


class RecordedEvents(NamedTuple):
    """The size of a recording: `events` and `written_bytes`; `dropped` events are missing."""

    events: int
    dropped: int
    written_bytes: int


class Recorder:
    """Records the events of `tracer` to `file`, and the exits that `exits` counts."""

    def __init__(
        self,
        tracer: EventTracer,
        file: RecordingFile,
        exits: Callable[[], Iterable[ExitCounters]] = tuple,
    ) -> None:
        self._tracer = tracer
        self._file = file
        self._exits = exits
        self._counted: dict[int, tuple[int, ...]] = {}
        self._stopping = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self.error: OSError | None = None
        """The reason why the file could not be written."""

    @property
    def total(self) -> RecordedEvents:
        """Return the size of the recording so far."""
        return RecordedEvents(self._file.events, self._file.dropped, self._file.written_bytes)

    def start(self) -> None:
        """Watch the events from now on."""
        self._wake_fd = self._tracer.start()
        self._thread.start()

    def close(self) -> None:
        """Write the events that wait, and close the file."""
        os.eventfd_write(self._stopping, 1)
        self._thread.join(END_TIMEOUT_S)
        if self._thread.is_alive():
            return  # its file system does not respond: the process ends without it
        os.close(self._stopping)
        self._file.close()

    def _run(self) -> None:
        wakers = select.poll()
        wakers.register(self._wake_fd, select.POLLIN)
        wakers.register(self._stopping, select.POLLIN)
        while self.error is None:
            ready = {fd for fd, _ in wakers.poll(FLUSH_PERIOD_S * 1000)}
            if self._wake_fd in ready:
                os.eventfd_read(self._wake_fd)
            self._emit_exits()
            if self._stopping in ready:
                break
            self._write(last=False)
        self._write(last=True)

    def _write(self, *, last: bool) -> None:
        batch = self._tracer.stop() if last else self._tracer.native.take()
        if batch is None or self.error is not None:
            return
        try:
            self._file.write(batch)
        except OSError as error:
            self.error = error
            _log.warning("the recording %s ends here: %s", self._file.path, error.strerror)

    def _emit_exits(self) -> None:
        for vcpu, counters in enumerate(self._exits()):
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
