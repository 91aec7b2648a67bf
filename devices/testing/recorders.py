# SPDX-License-Identifier: Apache-2.0
"""Implementations of `devices.ports` that record what a device does, for tests to inspect."""

from __future__ import annotations

from collections.abc import Callable

from pyvmm_native.events import EventBuffer


class RecordingTracer:
    """`Tracer` that keeps `events` as (name, fields), except accesses to registers and BARs.

    With a `buffer` all events go there as well, frequent ones and those of native code included.
    """

    def __init__(self, buffer: EventBuffer | None = None) -> None:
        self.events: list[tuple[str, dict[str, int | str]]] = []
        self.native = buffer
        self.watched = buffer is not None
        self.quiet = self if buffer else None

    def event(self, name: str, **fields: int | str) -> None:
        """Record an event whose name does not start with "register_" or "bar_"."""
        if self.native is not None:
            self.native.event(name, **fields)
        if not name.startswith(("register_", "bar_")):
            self.events.append((name, fields))

    @property
    def names(self) -> list[str]:
        """Names of the events, in order."""
        return [name for name, _ in self.events]


class RecordingMsiSink:
    """`MsiSink` that keeps the message of each vector and the vectors triggered.

    `routes` maps a vector to its (address, data); `triggered` are the vectors in order.
    `on_trigger`, which may be replaced, is called with each of them.
    """

    def __init__(self) -> None:
        self.routes: dict[int, tuple[int, int]] = {}
        self.triggered: list[int] = []
        self.on_trigger: Callable[[int], object] = lambda vector: None

    def route(self, vector: int, address: int, data: int) -> None:
        """Record the message of `vector`."""
        self.routes[vector] = (address, data)

    def trigger(self, vector: int) -> None:
        """Record that `vector` was sent."""
        self.triggered.append(vector)
        self.on_trigger(vector)


class RecordingInterruptLine:
    """`InterruptLine` that keeps its current `level`."""

    level = False

    def set_level(self, level: bool) -> None:
        """Record the level."""
        self.level = level


class RecordingHostNotifiers:
    """`HostNotifiers` that keep the address of each queue and the notifications not yet served.

    `assigned` maps a queue to the guest-physical address at which it is notified; `notified` are
    queues in the order of their notifications. `Board.serve` empties it.
    """

    def __init__(self) -> None:
        self.assigned: dict[int, int] = {}
        self.notified: list[int] = []

    def assign(self, queue: int, gpa: int | None) -> None:
        """Record that `queue` is notified at `gpa`, or nowhere."""
        if gpa is None:
            del self.assigned[queue]
        else:
            self.assigned[queue] = gpa

    def notify(self, queue: int) -> None:
        """Record a notification of `queue`."""
        self.notified.append(queue)
