# SPDX-License-Identifier: Apache-2.0
"""Limiting the rate of an event without ever losing its last value.

As in QEMU's monitor: the first event goes out at once and opens a period; of those that follow
within the period only the newest is kept, and it goes out when the period ends, opening the next
one. A balloon that moves for a minute so causes sixty events, the last of which is where it rests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

CallLater = Callable[[float, Callable[[], None]], object]
"""`asyncio.AbstractEventLoop.call_later`: a delay in seconds and what to call then."""


class EventThrottle(Generic[T]):
    """Hands values on to `send`, at most one per `period_s` seconds."""

    def __init__(self, period_s: float, send: Callable[[T], None], call_later: CallLater) -> None:
        self._period_s = period_s
        self._send = send
        self._call_later = call_later
        self._period_open = False
        self._held: list[T] = []  # at most one value

    def offer(self, value: T) -> None:
        """Send `value` now or when the present period ends, unless a newer one replaces it."""
        if self._period_open:
            self._held = [value]
        else:
            self._open_period(value)

    def flush(self) -> None:
        """Send what is held back now: nothing comes later."""
        held, self._held = self._held, []
        for value in held:
            self._send(value)

    def _open_period(self, value: T) -> None:
        self._period_open = True
        self._call_later(self._period_s, self._end_period)
        self._send(value)

    def _end_period(self) -> None:
        self._period_open = False
        held, self._held = self._held, []
        for value in held:
            self._open_period(value)
