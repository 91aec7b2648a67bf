# SPDX-License-Identifier: Apache-2.0
"""The guest's memory statistics over time: the last report, polling, and fresh ones on demand.

`last` is whatever the guest reported last, asked or not, with the time it came. Polling asks at an
interval and waits for nothing. `fresh` waits for news: a report may be on its way when somebody
asks, measured before the question, so what counts is not when a report comes but which question it
answers. Each waiter therefore notes the number of the next question that can be put, and takes no
report that answers an earlier one. Questions need the driver's buffer (`devices.balloon.stats`): if
it is with the driver, the question is put as soon as the report has come that it is filled with.
That also covers a driver which starts only now, or again after a reset: its first report is the
opportunity to ask. A guest that is paused answers when it runs again, in time or not.

All of it runs on the event loop. Reports arrive with the machine's lock held, so what they lead to
happens in a turn of its own.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from devices.balloon.dialects import Role

if TYPE_CHECKING:
    from devices.balloon.device import BalloonDevice
    from devices.balloon.stats import StatsReport


class StatisticsUnavailable(Exception):
    """The guest did not report in time, or cannot; the message says which."""


class TimedReport(NamedTuple):
    """A report and when it came."""

    report: StatsReport
    time_ns: int
    """Host time, nanoseconds after the epoch."""


class _Waiter(NamedTuple):
    question: int
    """The first question whose answer is news to this waiter."""
    answer: asyncio.Future[TimedReport]


class BalloonStatistics:
    """Statistics of the guest behind `balloon`, whose every use is under `lock`.

    Made on a running event loop. `soon` runs a function on it later; it may be called from any
    thread.
    """

    def __init__(
        self,
        balloon: BalloonDevice,
        lock: threading.Lock,
        soon: Callable[[Callable[[], None]], None],
    ) -> None:
        self._balloon = balloon
        self._lock = lock
        self._soon = soon
        self._loop = asyncio.get_running_loop()
        self._waiters: list[_Waiter] = []
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False
        self._held = False
        self._polling_interval_s = 0
        self.last: TimedReport | None = None
        """The report that came last, whoever asked for it."""
        balloon.stats.on_report = self._reported

    @property
    def polling_interval_s(self) -> int:
        """Seconds between two questions put without being asked for; 0 is never."""
        return self._polling_interval_s

    def set_polling_interval(self, seconds: int) -> None:
        """Ask now and then every `seconds`; 0 ends it. Takes effect at once."""
        if seconds == self._polling_interval_s:
            return
        self._polling_interval_s = seconds
        self._stop_timer()
        if seconds and not self._ended:
            self._poll()

    async def fresh(self, timeout_s: float) -> TimedReport:
        """Return a report measured after this call.

        Raises `StatisticsUnavailable` when none comes within `timeout_s`.
        """
        self._check_possible()
        waiter = _Waiter(self._balloon.stats.questions + 1, self._loop.create_future())
        self._waiters.append(waiter)
        self._ask()
        try:
            async with asyncio.timeout(timeout_s):
                return await waiter.answer
        except TimeoutError:
            raise StatisticsUnavailable(self._why_silent(timeout_s)) from None
        finally:
            self._waiters.remove(waiter)

    def hold(self, held: bool) -> None:
        """Put no question while `held`, as each gives a buffer back and so writes to guest RAM."""
        self._held = held
        if self._waiters:
            self._ask()

    def close(self) -> None:
        """The guest has ended: nobody needs to wait any longer."""
        self._ended = True
        self._stop_timer()
        for waiter in self._waiters:
            if not waiter.answer.done():
                waiter.answer.set_exception(StatisticsUnavailable("the guest has ended"))

    def _check_possible(self) -> None:
        if self._ended:
            raise StatisticsUnavailable("the guest has ended")
        if self._balloon.running and not self._balloon.has_live(Role.STATS):
            raise StatisticsUnavailable("the guest's balloon driver does not report statistics")

    def _why_silent(self, timeout_s: float) -> str:
        if not self._balloon.running:
            return f"no balloon driver has started in the guest within {timeout_s:g} s"
        return f"the guest has not reported statistics within {timeout_s:g} s"

    def _ask(self) -> None:
        if self._held:
            return
        with self._lock:
            self._balloon.ask_for_stats()

    def _poll(self) -> None:
        self._timer = self._loop.call_later(self._polling_interval_s, self._poll)
        self._ask()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _reported(self, report: StatsReport) -> None:
        timed = TimedReport(report, time.time_ns())
        self._soon(lambda: self._arrived(timed))

    def _arrived(self, timed: TimedReport) -> None:
        self.last = timed
        waiting = [waiter for waiter in self._waiters if not waiter.answer.done()]
        for waiter in waiting:
            if waiter.question <= timed.report.questions:
                waiter.answer.set_result(timed)
        if any(not waiter.answer.done() for waiter in waiting):
            self._ask()
