# SPDX-License-Identifier: Apache-2.0
"""The guest's memory statistics: the last report, polling, and fresh reports on request.

`last` is the last report, requested or not, with the time of its arrival. Polling requests a report
at an interval and waits for nothing. `fresh` waits for a report measured after the call; one that
is on its way already does not count (`devices.balloon.stats`). Several callers may share a report.

`fresh` needs the driver's buffer. If it is with the driver, the request is issued as soon as the
outstanding report has arrived; if no driver runs, as soon as one has started, also after a reset. A
guest that is paused responds when it resumes. So only a guest that has ended, or a driver without
STATS_VQ, fails a request before its time-out. Errors are those of `pyvmm.balloon.guest_requests`.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NamedTuple

from devices.balloon.dialects import Role
from devices.errors import BadPayload
from pyvmm.balloon.guest_requests import (
    DEFAULT_TIMEOUT_S,
    GuestAccess,
    GuestRequestChannel,
    InvalidResponse,
)

if TYPE_CHECKING:
    from devices.balloon.stats import OnReport, StatsReport

UNAVAILABLE = "the guest runs no balloon driver with STATS_VQ"
"""Message of `DriverUnavailable` for these requests."""


class TimedReport(NamedTuple):
    """A report and the time of its arrival."""

    report: StatsReport
    time_ns: int
    """Host time, nanoseconds after the epoch."""


class BalloonStatistics:
    """Memory statistics of one guest.

    Threads: event loop.
    """

    def __init__(self, access: GuestAccess) -> None:
        self._balloon = access.balloon
        self._call_soon = access.call_soon
        self._channel: GuestRequestChannel[StatsReport | BadPayload] = GuestRequestChannel(
            access, Role.STATS, UNAVAILABLE, deferrable=True
        )
        self._timer: asyncio.TimerHandle | None = None
        self._held = False
        self._ended = False
        self._polling_interval_s = 0
        self.last: TimedReport | None = None
        """The last report, requested or not."""
        access.balloon.stats.report_received.add(self._on_report)

    @property
    def polling_interval_s(self) -> int:
        """Return the seconds between two polls; 0 if polling is off."""
        return self._polling_interval_s

    def set_polling_interval(self, seconds: int) -> None:
        """Poll immediately, then every `seconds`; 0 ends polling."""
        if seconds == self._polling_interval_s:
            return
        self._polling_interval_s = seconds
        self._stop_timer()
        if seconds and not self._ended:
            self._poll()

    async def fresh(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> TimedReport:
        """Return a report measured after this call. Raises `GuestRequestError`."""
        self._channel.check()
        async with self._channel.time_limit(timeout_s):
            with self._channel.issue(self._send, self._balloon.stats.cancel) as response:
                report = await response
        if isinstance(report, BadPayload):
            raise InvalidResponse(f"invalid response of the guest's balloon driver: {report}")
        assert self.last is not None, "the listener of all reports is called first"
        return self.last

    def hold(self, held: bool) -> None:
        """Issue no request while `held`, as each returns a buffer and so writes to guest RAM."""
        self._held = held
        with self._channel.lock:
            if self._balloon.stats.awaited:
                self._issue()

    def close(self) -> None:
        """End polling and fail all outstanding and later requests: the guest has ended."""
        self._ended = True
        self._stop_timer()
        self._channel.close()

    def _send(self, on_report: OnReport) -> None:
        self._balloon.stats.request(on_report)
        self._issue()

    def _issue(self) -> None:
        if not self._held:
            self._balloon.request_stats()

    def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._polling_interval_s, self._poll)
        with self._channel.lock:
            self._issue()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_report(self, report: StatsReport) -> None:
        self._call_soon(self._store, TimedReport(report, time.time_ns()))

    def _store(self, timed: TimedReport) -> None:
        self.last = timed
