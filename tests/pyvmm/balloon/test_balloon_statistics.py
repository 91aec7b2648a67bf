# SPDX-License-Identifier: Apache-2.0
"""Fresh statistics, polling and the last report, against a driver on a real virtqueue.

The driver responds only when a test tells it to, and waits end after a number of turns of the loop,
so that every order of events can be tested without a clock.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from devices.balloon.dialects import STANDARD
from devices.testing.balloon.driver import DEFLATE, INFLATE
from devices.testing.balloon.stats import FREE, StatsGuest
from devices.testing.driver import VERSION_1
from pyvmm.balloon.guest_requests import (
    DriverUnavailable,
    GuestAccess,
    GuestEnded,
    InvalidResponse,
    RequestTimeout,
)
from pyvmm.balloon.statistics import BalloonStatistics, TimedReport

LONG_S = 600.0
"""No test waits that long."""
Scenario = Callable[[StatsGuest, BalloonStatistics], Coroutine[Any, Any, None]]


def run(scenario: Scenario) -> None:
    async def main() -> None:
        guest = StatsGuest(STANDARD)
        loop = asyncio.get_running_loop()

        def call_soon(callback: Callable[..., None], *args: object) -> None:
            loop.call_soon(callback, *args)

        access = GuestAccess(guest.board.balloon, threading.Lock(), call_soon, lambda: False)
        stats = BalloonStatistics(access)
        try:
            await asyncio.wait_for(scenario(guest, stats), 30)
        finally:
            stats.close()

    asyncio.run(main())


async def turns(count: int = 5) -> None:
    """Let the event loop run everything that is scheduled."""
    for _ in range(count):
        await asyncio.sleep(0)


async def requested(stats: BalloonStatistics, count: int = 1) -> list[asyncio.Task[TimedReport]]:
    """Start tasks that wait for fresh statistics, and let them issue their requests."""
    tasks = [asyncio.create_task(stats.fresh(LONG_S)) for _ in range(count)]
    await turns()
    return tasks


def free(timed: TimedReport) -> int | None:
    return timed.report.values.get(FREE)


async def in_time(waiting: Awaitable[TimedReport]) -> int | None:
    return free(await asyncio.wait_for(waiting, 10))


def test_the_unrequested_first_report_is_stored_as_last() -> None:
    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        assert stats.last is None
        guest.start()
        await turns()
        assert stats.last is not None
        assert stats.last.report.values == guest.statistics
        assert guest.requests == 0

    run(scenario)


def test_fresh_returns_a_report_measured_after_the_call() -> None:
    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        guest.start()
        await turns()
        [task] = await requested(stats)
        assert not task.done(), "the last report is known, but it is old"
        guest.statistics[FREE] = 5
        assert guest.respond()
        assert await in_time(task) == 5
        assert stats.last == task.result()
        assert guest.requests == 1

    run(scenario)


def test_an_outstanding_report_is_not_fresh_for_a_later_call() -> None:
    """It was measured before the second call and arrives after it."""

    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        guest.start()
        [first] = await requested(stats)
        guest.statistics[FREE] = 1  # measured for the first request
        [second] = await requested(stats)
        assert guest.requests == 0
        guest.respond()
        assert await in_time(first) == 1
        await turns()
        assert not second.done()
        guest.statistics[FREE] = 2
        assert guest.respond(), "requested again for the second call"
        assert await in_time(second) == 2

    run(scenario)


def test_a_received_report_that_is_not_delivered_yet_is_not_fresh() -> None:
    """It has reached the device, and the event loop delivers it in a later turn."""

    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        guest.start()
        [first] = await requested(stats)
        guest.statistics[FREE] = 1
        guest.respond()
        second = asyncio.create_task(stats.fresh(LONG_S))
        assert await in_time(first) == 1
        await turns()
        assert not second.done()
        guest.statistics[FREE] = 2
        assert guest.respond()
        assert await in_time(second) == 2

    run(scenario)


def test_one_report_serves_all_calls_made_before_its_request() -> None:
    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        guest.start()
        await requested(stats)
        waiting = await requested(stats, 10)
        guest.respond()
        await turns()
        guest.statistics[FREE] = 3
        guest.respond()
        assert [await in_time(task) for task in waiting] == [3] * 10
        assert guest.requests == 2
        await turns()
        assert not guest.respond()

    run(scenario)


def test_fresh_may_be_called_before_the_driver_starts() -> None:
    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        [task] = await requested(stats)
        guest.statistics[FREE] = 1
        guest.start()
        await turns()
        assert not task.done(), "the first report may be older than the request"
        guest.statistics[FREE] = 2
        assert guest.respond()
        assert await in_time(task) == 2

    run(scenario)


@pytest.mark.parametrize("buffer_is_with_the_driver", [True, False])
def test_a_request_survives_a_reset_of_the_driver(buffer_is_with_the_driver: bool) -> None:
    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        guest.start()
        earlier = await requested(stats) if buffer_is_with_the_driver else []
        [task] = await requested(stats)
        guest.driver.reset()
        await turns()
        assert not task.done()
        guest.statistics[FREE] = 8
        guest.start()
        guest.statistics[FREE] = 9
        while not task.done():
            await turns()
            guest.respond()
        # The first report after the reset completes a request issued before it.
        assert [await in_time(each) for each in earlier] == [8] * len(earlier)
        assert await in_time(task) == (9 if buffer_is_with_the_driver else 8)

    run(scenario)


def test_a_request_times_out_and_a_late_report_is_only_stored() -> None:
    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        guest.start()
        await turns()
        before = stats.last
        for _ in range(3):
            with pytest.raises(RequestTimeout, match=r"not responded within 0\.01 s"):
                await stats.fresh(0.01)
        assert stats.last is before
        # The report comes late: it is stored as the last one, and new calls get a newer one.
        guest.statistics[FREE] = 1
        [task] = await requested(stats)
        guest.respond()
        await turns()
        assert stats.last is not None
        assert free(stats.last) == 1
        assert not task.done()
        guest.statistics[FREE] = 2
        guest.respond()
        assert await in_time(task) == 2

    run(scenario)


def test_a_driver_that_does_not_start_in_time_is_unavailable() -> None:
    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        with pytest.raises(DriverUnavailable, match="runs no balloon driver with STATS_VQ"):
            await stats.fresh(0)

    run(scenario)


def test_a_driver_without_stats_vq_is_unavailable_at_once() -> None:
    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        guest.driver.start(features=VERSION_1, queues=[INFLATE, DEFLATE])
        with pytest.raises(DriverUnavailable, match="runs no balloon driver with STATS_VQ"):
            await stats.fresh(LONG_S)

    run(scenario)


def test_a_bad_report_is_an_invalid_response_only_to_its_own_request() -> None:
    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        guest.start()
        [first] = await requested(stats)
        [second] = await requested(stats)
        guest.respond(b"nonsense!!!")
        with pytest.raises(InvalidResponse, match="11 bytes are not an array"):
            await first
        assert not second.done()
        guest.respond()
        assert await in_time(second) == guest.statistics[FREE]
        [third] = await requested(stats)
        guest.respond(b"nonsense!!!")
        with pytest.raises(InvalidResponse):
            await third
        [fourth] = await requested(stats)
        guest.respond()
        assert await in_time(fourth) == guest.statistics[FREE]

    run(scenario)


def test_a_cancelled_call_does_not_affect_others() -> None:
    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        guest.start()
        first, second = await requested(stats, 2)
        first.cancel()
        await turns()
        guest.respond()
        await turns()
        guest.respond()
        assert await in_time(second) == guest.statistics[FREE]
        assert first.cancelled()

    run(scenario)


def test_the_end_of_the_guest_fails_all_requests() -> None:
    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        guest.start()
        waiting = await requested(stats, 2)
        stats.set_polling_interval(1)
        stats.close()
        for task in waiting:
            with pytest.raises(GuestEnded, match="has ended"):
                await task
        with pytest.raises(GuestEnded, match="has ended"):
            await stats.fresh(LONG_S)
        stats.set_polling_interval(2)

    run(scenario)


def test_polling_requests_a_report_at_once_and_at_every_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scheduled timers are recorded in a list instead of a clock."""
    timers: list[tuple[float, Callable[[], None]]] = []

    class Timer:
        def cancel(self) -> None:
            timers.clear()

    def call_later(delay_s: float, callback: Callable[[], None]) -> Timer:
        timers.append((delay_s, callback))
        return Timer()

    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "call_later", call_later)
        stats.set_polling_interval(10)
        assert stats.polling_interval_s == 10
        guest.start()
        assert not guest.respond(), "no driver ran yet"
        for free_bytes in (1, 2, 3):
            [(delay_s, tick)] = timers
            timers.clear()
            assert delay_s == 10
            guest.statistics[FREE] = free_bytes
            tick()
            assert guest.respond()
            await turns()
            assert stats.last is not None
            assert free(stats.last) == free_bytes
        stats.set_polling_interval(10)
        assert not guest.respond(), "nothing changed"
        stats.set_polling_interval(20)
        assert [delay_s for delay_s, _ in timers] == [20]
        assert guest.respond(), "a new interval polls at once"
        stats.set_polling_interval(0)
        assert timers == []
        assert stats.polling_interval_s == 0

    run(scenario)


def test_polling_issues_no_request_while_one_is_outstanding() -> None:
    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        guest.start()
        for interval_s in range(1, 50):
            stats.set_polling_interval(interval_s)
        assert guest.respond()
        assert not guest.respond()
        assert guest.board.balloon.stats.requests == 1

    run(scenario)


def test_no_request_is_issued_while_held() -> None:
    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        guest.start()
        stats.hold(True)
        [task] = await requested(stats)
        stats.set_polling_interval(1)
        assert guest.board.balloon.stats.requests == 0
        stats.hold(False)
        assert guest.respond()
        assert await in_time(task) == guest.statistics[FREE]
        stats.hold(True)
        stats.hold(False)
        assert not guest.respond(), "no call waits for a report"

    run(scenario)
