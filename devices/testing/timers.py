# SPDX-License-Identifier: Apache-2.0
"""Timers whose clock moves only when a test moves it.

    from devices.testing import FakeTimers

    timers, expired = FakeTimers(), []
    timer = timers.timer(lambda: expired.append(timers.now_ns()))
    timer.arm(1_000_000)
    timers.advance(3_000_000)
    assert expired == [1_000_000]

Times are nanoseconds.
"""

from __future__ import annotations

from collections.abc import Callable


class FakeTimer:
    """`devices.ports.Timer` of a `FakeTimers`."""

    def __init__(self, timers: FakeTimers, on_expiry: Callable[[], None]) -> None:
        self._timers = timers
        self._on_expiry = on_expiry
        self.deadline_ns: int | None = None
        """When the timer expires, on the clock of its `FakeTimers`; None while it is not armed."""

    @property
    def remaining_ns(self) -> int | None:
        """Nanoseconds until the timer expires; None while it is not armed."""
        if self.deadline_ns is None:
            return None
        return max(0, self.deadline_ns - self._timers.now_ns())

    def arm(self, delay_ns: int) -> None:
        """Expire once, `delay_ns` nanoseconds from now; replaces an earlier deadline."""
        self.deadline_ns = self._timers.now_ns() + delay_ns

    def cancel(self) -> None:
        """Disarm the timer."""
        self.deadline_ns = None

    def expire(self) -> None:
        """Disarm the timer, then call `on_expiry`."""
        self.deadline_ns = None
        self._on_expiry()


class FakeTimers:
    """`devices.ports.Timers` over a clock that starts at 0 and that `advance` moves."""

    def __init__(self) -> None:
        self._now_ns = 0
        self._timers: list[FakeTimer] = []

    def now_ns(self) -> int:
        """Return the nanoseconds by which the clock was advanced."""
        return self._now_ns

    def timer(self, on_expiry: Callable[[], None]) -> FakeTimer:
        """Create a timer, not armed, that calls `on_expiry` when it expires."""
        timer = FakeTimer(self, on_expiry)
        self._timers.append(timer)
        return timer

    def advance(self, ns: int) -> None:
        """Move the clock by `ns` nanoseconds; timers expire in the order of their deadlines.

        Each sees the clock at its own deadline, and may arm itself again within the interval.
        """
        end_ns = self._now_ns + ns
        while (due := self._next_deadline_ns()) is not None and due[0] <= end_ns:
            self._now_ns = max(self._now_ns, due[0])
            due[1].expire()
        self._now_ns = end_ns

    def _next_deadline_ns(self) -> tuple[int, FakeTimer] | None:
        armed = [(t.deadline_ns, t) for t in self._timers if t.deadline_ns is not None]
        return min(armed, key=lambda each: each[0], default=None)
