# SPDX-License-Identifier: Apache-2.0
"""A rate limit for events that never loses the last value.

As in QEMU's monitor: the first event is sent at once and starts a period; of those that follow
within the period only the newest is kept, and it is sent when the period ends, which starts the
next one. A balloon that is resized for a minute thus causes sixty events, and the last one has the
final size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

CallLater = Callable[[float, Callable[[], None]], object]
"""`asyncio.AbstractEventLoop.call_later`: a delay in seconds and what to call then."""


class EventThrottle(Generic[T]):
    """Passes values to `send`, at most one per `period_s` seconds."""

    def __init__(self, period_s: float, send: Callable[[T], None], call_later: CallLater) -> None:
        self._period_s = period_s
        self._send = send
        self._call_later = call_later
        self._period_open = False
        self._pending: list[T] = []  # at most one value

    def offer(self, value: T) -> None:
        """Send `value` now or when the current period ends, unless a newer one replaces it."""
        if self._period_open:
            self._pending = [value]
        else:
            self._start_period(value)

    def flush(self) -> None:
        """Send a pending value now, at the end of all events."""
        pending, self._pending = self._pending, []
        for value in pending:
            self._send(value)

    def _start_period(self, value: T) -> None:
        self._period_open = True
        self._call_later(self._period_s, self._end_period)
        self._send(value)

    def _end_period(self) -> None:
        self._period_open = False
        pending, self._pending = self._pending, []
        for value in pending:
            self._start_period(value)
