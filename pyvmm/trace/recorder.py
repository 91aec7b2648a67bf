# SPDX-License-Identifier: Apache-2.0
"""The recorder: writes the events of a machine to a file.

The file gets what there is every 500 ms, so a VMM that is killed loses at most the last 500 ms. No
lock is held meanwhile. When the file cannot be written any more, the recording ends and the guest
runs on. Its owner calls `commit` when the guest is about to run: a start that is refused replaces
no recording.

Threads: event taker; `start`, `commit` and `close` on the thread that owns the machine.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.trace.recording_file import RecordingFile
from pyvmm.trace.tracer import EventTracer

if TYPE_CHECKING:
    from pyvmm_native.events import Batch

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
    """Records the events of `tracer` to `file`; satisfies `EventSink`."""

    period_s = FLUSH_PERIOD_S

    def __init__(self, tracer: EventTracer, file: RecordingFile) -> None:
        self._tracer = tracer
        self._taker = tracer.taker
        self._file = file
        self._started = False
        self._ended = threading.Event()
        self.error: OSError | None = None
        """The reason why the file could not be written."""

    @property
    def total(self) -> RecordedEvents:
        """Return the size of the recording so far."""
        return RecordedEvents(self._file.events, self._file.dropped, self._file.written_bytes)

    def start(self) -> None:
        """Record the events from now on. Raises `ThreadNotStarted`."""
        self._taker.add(self)
        self._started = True

    def commit(self) -> None:
        """Keep the recording, in place of an earlier one. Raises `RecordingNotWritten`.

        One that cannot be written by now replaces none.
        """
        if self.error is None:
            self._file.commit()

    def close(self) -> None:
        """Write the events that wait, and close the file."""
        self._taker.remove(self)
        if not self._started or self._ended.wait(END_TIMEOUT_S):
            self._file.close()
        # Else its file system does not respond, and the process ends without it.

    def put(self, chunk: bytes, batch: Batch) -> None:
        """As `EventSink.put`."""
        if self.error is not None:
            return
        try:
            if self._tracer.ram_bytes:
                self._file.note_ram(self._tracer.ram_bytes)
            self._file.write_chunk(chunk, batch)
        except OSError as error:
            self.error = error
            _log.warning("the recording %s ends here: %s", self._file.path, error.strerror)
            self._taker.remove(self)

    def end(self) -> None:
        """As `EventSink.end`."""
        self._ended.set()
