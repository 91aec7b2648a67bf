# SPDX-License-Identifier: Apache-2.0
"""Timers of device models, on a virtual clock that stops while the guest is paused.

Deadlines are nanoseconds of the virtual clock. A timer that is armed while the guest runs has one
callback scheduled on the event loop; `stop` cancels the callbacks and stops the clock, `start`
resumes the clock and schedules the remainders. Before a loop is attached, and while the guest is
paused, timers can be armed and simply do not expire. A device saves `remaining_ns` and arms its
timer with it when it is restored (`devices.timers`).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvmm.machine.event_loop import EventLoop, Handle

_NS = 1_000_000_000


class DeviceTimers:
    """All timers of one machine; satisfies `devices.ports.Timers`.

    `lock` is the device lock: callbacks run while it is held. `on_error` is called with exceptions
    of callbacks.

    Threads: `timer`, `now_ns` and the methods of a timer by any thread that holds the device lock;
    `start`, `stop` and the callbacks on the event loop.
    """

    def __init__(self, lock: threading.Lock, on_error: Callable[[BaseException], None]) -> None:
        self._lock = lock
        self._on_error = on_error
        self._timers: list[_DeviceTimer] = []
        self._loop: EventLoop | None = None
        self._elapsed_ns = 0  # of the virtual clock, up to the last stop
        self._started_ns: int | None = None  # of the host's clock; None while it is stopped

    def now_ns(self) -> int:
        """Return the time as `Timers.now_ns`."""
        started_ns = self._started_ns
        if started_ns is None:
            return self._elapsed_ns
        return self._elapsed_ns + time.monotonic_ns() - started_ns

    def timer(self, on_expiry: Callable[[], None]) -> _DeviceTimer:
        """Create a timer as `Timers.timer`."""
        timer = _DeviceTimer(self, on_expiry)
        self._timers.append(timer)
        return timer

    def start(self, loop: EventLoop) -> None:
        """Start the virtual clock; timers expire on `loop`."""
        if self._started_ns is None:
            self._loop, self._started_ns = loop, time.monotonic_ns()
            for timer in self._timers:
                self._schedule(timer)

    def stop(self) -> None:
        """Stop the virtual clock; no timer expires until `start`."""
        self._elapsed_ns, self._started_ns = self.now_ns(), None
        for timer in self._timers:
            timer.unschedule()

    def changed(self, timer: _DeviceTimer) -> None:
        """Reschedule `timer`; called by any thread."""
        if self._loop is not None and self._started_ns is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and no timer expires
                self._loop.call_soon_threadsafe(self._schedule, timer)

    def _schedule(self, timer: _DeviceTimer) -> None:
        timer.unschedule()
        remaining_ns = timer.remaining_ns
        if remaining_ns is not None and self._loop is not None and self._started_ns is not None:
            timer.handle = self._loop.call_later(remaining_ns / _NS, self._expire, timer)

    def _expire(self, timer: _DeviceTimer) -> None:
        timer.handle = None
        try:
            with self._lock:
                expired = timer.expire()
        except Exception as error:  # the loop would only log it
            self._on_error(error)
            return
        if not expired:
            self._schedule(timer)  # rearmed or cancelled meanwhile, or woken slightly early


class _DeviceTimer:
    """One timer; satisfies `devices.ports.Timer`."""

    def __init__(self, owner: DeviceTimers, on_expiry: Callable[[], None]) -> None:
        self._owner = owner
        self._on_expiry = on_expiry
        self._deadline_ns: int | None = None
        self.handle: Handle | None = None

    @property
    def remaining_ns(self) -> int | None:
        deadline_ns = self._deadline_ns  # another thread may cancel the timer meanwhile
        if deadline_ns is None:
            return None
        return max(0, deadline_ns - self._owner.now_ns())

    def arm(self, delay_ns: int) -> None:
        self._deadline_ns = self._owner.now_ns() + delay_ns
        self._owner.changed(self)

    def cancel(self) -> None:
        self._deadline_ns = None

    def expire(self) -> bool:
        """Call `on_expiry` if the deadline has passed, and return whether; the lock is held."""
        if self.remaining_ns != 0:
            return False
        self._deadline_ns = None
        self._on_expiry()
        return True

    def unschedule(self) -> None:
        if self.handle is not None:
            self.handle.cancel()
            self.handle = None
