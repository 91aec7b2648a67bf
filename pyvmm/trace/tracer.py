# SPDX-License-Identifier: Apache-2.0
"""The tracer of a machine whose events can be watched while it runs.

    tracer = EventTracer()
    machine = Machine(Platform(config, tracer=tracer, ...))
    tracer.taker.add(sink)              # a recorder, or a client that watches

All emitters fill one `EventBuffer`, and one thread, `EventTaker`, takes from it. While there is no
sink no event is kept, and frequent ones are not even made. Events go to the log as well, except
those that are too frequent for it, which `quiet` receives.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from pyvmm.trace.logging import LogTracer, log_event
from pyvmm_native.events import HALF_BYTES, EventBuffer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pyvmm.trace.taker import EventTaker
    from pyvmm_native.events import Batch
    from pyvmm_native.kvm_run import ExitCounters


class EventTracer(LogTracer):
    """A `devices.ports.Tracer` that keeps events while it is watched, and logs them.

    `exits` returns the counters of exits of the machine, by vCPU, and `ram_bytes` is the size of
    its RAM; 0 while there is no machine.

    Threads: events come from any thread; `start`, `stop` and `native.take` are called by one thread
    at a time, which is `taker` while that has sinks.
    """

    native: EventBuffer
    quiet: EventTracer

    def __init__(self) -> None:
        super().__init__()
        self._logs_frequent = self.watched
        self.native = EventBuffer()
        self.exits: Callable[[], Iterable[ExitCounters]] = tuple
        self.ram_bytes = 0
        # Of this class, too: what reads `watched` for every register is fastest with one class.
        self.quiet = quiet = EventTracer.__new__(EventTracer)
        quiet.watched, quiet.native, quiet.quiet = False, self.native, quiet
        quiet.event = self.native.event  # type: ignore[method-assign]

    @cached_property
    def taker(self) -> EventTaker:
        """The thread that takes the events."""
        # 3 modules, for machines whose events are recorded or watched.
        from pyvmm.trace.taker import EventTaker

        return EventTaker(self)

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
        log_event(name, fields)
