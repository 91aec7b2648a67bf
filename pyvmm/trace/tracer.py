# SPDX-License-Identifier: Apache-2.0
"""The tracer of a machine whose events can be watched while it runs.

    tracer = EventTracer()
    vm = VirtualMachine(config, tracer=tracer, ...)
    wake_fd = tracer.start()            # readable when there is much to take
    while ...:
        batch = tracer.native.take()    # every 500 ms, or when it wakes
    last = tracer.stop()

All emitters fill one `EventBuffer`, and one thread takes from it. Until `start` no event is kept,
and frequent ones are not even made. Events go to the log as well, except those that are too
frequent for it, which `quiet` receives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvmm.trace.logging import LogTracer
from pyvmm_native.events import HALF_BYTES, EventBuffer

if TYPE_CHECKING:
    from pyvmm_native.events import Batch


class EventTracer(LogTracer):
    """A `devices.ports.Tracer` that keeps events while it is watched, and logs them.

    Threads: events come from any thread; `start` and `stop` are called by one thread at a time, and
    while it is started `native.take` by one other.
    """

    native: EventBuffer
    quiet: EventTracer

    def __init__(self) -> None:
        super().__init__()
        self._logs_frequent = self.watched
        self.native = EventBuffer()
        # Of this class, too: what reads `watched` for every register is fastest with one class.
        self.quiet = quiet = EventTracer.__new__(EventTracer)
        quiet.watched, quiet.native, quiet.quiet = False, self.native, quiet
        quiet.event = self.native.event  # type: ignore[method-assign]

    def start(self, half_bytes: int = HALF_BYTES) -> int:
        """Keep events from now on; as `EventBuffer.start`."""
        wake_fd = self.native.start(half_bytes)
        self.watched = self.quiet.watched = True
        return wake_fd

    def stop(self) -> Batch | None:
        """Keep no further events; return those that wait."""
        self.quiet.watched = False
        self.watched = self._logs_frequent
        return self.native.stop()

    def event(self, name: str, **fields: int | str) -> None:
        """Log the event `name`, and keep it while the tracer is watched."""
        if self.quiet.watched:
            self.native.event(name, **fields)
        super().event(name, **fields)
