# SPDX-License-Identifier: Apache-2.0
"""Fresh statistics, polling and the last report, against a driver on a real virtqueue.

The driver answers only where a test says so, and waits here end by counting turns of the loop, so
that every order of events can be had without a clock.
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
from pyvmm.balloon.statistics import BalloonStatistics, StatisticsUnavailable, TimedReport

LONG_S = 600.0
"""No test waits that long."""
Scenario = Callable[[StatsGuest, BalloonStatistics], Coroutine[Any, Any, None]]


def run(scenario: Scenario) -> None:
    async def main() -> None:
        guest = StatsGuest(STANDARD)
        loop = asyncio.get_running_loop()

        def soon(callback: Callable[[], None]) -> None:
            loop.call_soon(callback)

        stats = BalloonStatistics(guest.board.balloon, threading.Lock(), soon)
        try:
            await asyncio.wait_for(scenario(guest, stats), 30)
        finally:
            stats.close()

    asyncio.run(main())


async def turns(count: int = 5) -> None:
    """Let the loop do whatever it has to do."""
    for _ in range(count):
        await asyncio.sleep(0)


async def asked(stats: BalloonStatistics, count: int = 1) -> list[asyncio.Task[TimedReport]]:
    """Tasks waiting for fresh statistics, their questions put if that is possible."""
    tasks = [asyncio.create_task(stats.fresh(LONG_S)) for _ in range(count)]
    await turns()
    return tasks


def free(timed: TimedReport) -> int | None:
    return timed.report.values.get(FREE)


async def in_time(waiting: Awaitable[TimedReport]) -> int | None:
    return free(await asyncio.wait_for(waiting, 10))


def test_the_first_report_is_the_last_one() -> None:
    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        assert stats.last is None
        guest.start()
        await turns()
        assert stats.last is not None
        assert stats.last.report.values == guest.statistics
        assert guest.requests == 0

    run(scenario)


def test_fresh_is_measured_after_the_call() -> None:
    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        guest.start()
        await turns()
        [task] = await asked(stats)
        assert not task.done(), "the last report is known, but it is old"
        guest.statistics[FREE] = 5
        assert guest.respond()
        assert await in_time(task) == 5
        assert stats.last == task.result()
        assert guest.requests == 1

    run(scenario)


def test_a_report_already_on_its_way_is_not_fresh() -> None:
    """Measured before the second question, arriving after it: only the first waiter may have it."""

    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        guest.start()
        [first] = await asked(stats)
        guest.statistics[FREE] = 1  # what the driver measures for the first question
        [second] = await asked(stats)
        assert guest.requests == 0
        guest.respond()
        assert await in_time(first) == 1
        await turns()
        assert not second.done()
        guest.statistics[FREE] = 2
        assert guest.respond(), "asked again for the second waiter"
        assert await in_time(second) == 2

    run(scenario)


def test_a_report_not_looked_at_yet_is_not_fresh() -> None:
    """It has reached the device, but this module hears of it in a later turn."""

    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        guest.start()
        [first] = await asked(stats)
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


def test_one_question_serves_all_who_waited_for_it() -> None:
    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        guest.start()
        await asked(stats)
        waiting = await asked(stats, 10)
        guest.respond()
        await turns()
        guest.statistics[FREE] = 3
        guest.respond()
        assert [await in_time(task) for task in waiting] == [3] * 10
        assert guest.requests == 2
        await turns()
        assert not guest.respond()

    run(scenario)


def test_waiting_begins_before_the_driver_does() -> None:
    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        [task] = await asked(stats)
        guest.statistics[FREE] = 1
        guest.start()
        await turns()
        assert not task.done(), "the first report may be older than the question"
        guest.statistics[FREE] = 2
        assert guest.respond()
        assert await in_time(task) == 2

    run(scenario)


@pytest.mark.parametrize("buffer_is_with_the_driver", [True, False])
def test_a_reset_meanwhile(buffer_is_with_the_driver: bool) -> None:
    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        guest.start()
        earlier = await asked(stats) if buffer_is_with_the_driver else []
        [task] = await asked(stats)
        guest.driver.reset()
        await turns()
        assert not task.done()
        guest.statistics[FREE] = 8
        guest.start()
        guest.statistics[FREE] = 9
        while not task.done():
            await turns()
            guest.respond()
        # The first report after the reset answers a question that was put before it.
        assert [await in_time(each) for each in earlier] == [8] * len(earlier)
        assert await in_time(task) == (9 if buffer_is_with_the_driver else 8)

    run(scenario)


def test_no_answer_in_time() -> None:
    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        guest.start()
        await turns()
        before = stats.last
        for _ in range(3):
            with pytest.raises(
                StatisticsUnavailable, match=r"not reported statistics within 0\.01 s"
            ):
                await stats.fresh(0.01)
        assert stats.last is before
        # The answer comes late: it is kept as the last one, and new waiters get a newer one.
        guest.statistics[FREE] = 1
        [task] = await asked(stats)
        guest.respond()
        await turns()
        assert stats.last is not None
        assert free(stats.last) == 1
        assert not task.done()
        guest.statistics[FREE] = 2
        guest.respond()
        assert await in_time(task) == 2

    run(scenario)


def test_no_driver_in_time() -> None:
    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        with pytest.raises(StatisticsUnavailable, match="no balloon driver has started"):
            await stats.fresh(0)

    run(scenario)


def test_a_driver_without_statistics_is_not_waited_for() -> None:
    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        guest.driver.start(features=VERSION_1, queues=[INFLATE, DEFLATE])
        with pytest.raises(StatisticsUnavailable, match="does not report statistics"):
            await stats.fresh(LONG_S)

    run(scenario)


def test_a_bad_answer_is_no_answer_and_does_not_stop_the_next() -> None:
    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        guest.start()
        [first] = await asked(stats)
        guest.respond(b"nonsense!!!")
        await turns()
        assert not first.done()
        [second] = await asked(stats)
        guest.respond()
        assert await in_time(second) == await in_time(first) == guest.statistics[FREE]

    run(scenario)


def test_who_gives_up_waiting_disturbs_nobody() -> None:
    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        guest.start()
        first, second = await asked(stats, 2)
        first.cancel()
        await turns()
        guest.respond()
        await turns()
        guest.respond()
        assert await in_time(second) == guest.statistics[FREE]
        assert first.cancelled()

    run(scenario)


def test_the_end_of_the_guest_ends_all_waiting() -> None:
    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        guest.start()
        waiting = await asked(stats, 2)
        stats.set_polling_interval(1)
        stats.close()
        for task in waiting:
            with pytest.raises(StatisticsUnavailable, match="has ended"):
                await task
        with pytest.raises(StatisticsUnavailable, match="has ended"):
            await stats.fresh(LONG_S)
        stats.set_polling_interval(2)

    run(scenario)


def test_polling_asks_at_once_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is a list: what was scheduled, and when."""
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
        assert not guest.respond(), "there was no driver to ask"
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
        assert guest.respond(), "a new interval asks at once"
        stats.set_polling_interval(0)
        assert timers == []
        assert stats.polling_interval_s == 0

    run(scenario)


def test_polling_a_guest_that_is_slow_asks_once() -> None:
    async def scenario(guest: StatsGuest, stats: BalloonStatistics) -> None:
        guest.start()
        for interval_s in range(1, 50):
            stats.set_polling_interval(interval_s)
        assert guest.respond()
        assert not guest.respond()
        assert guest.board.balloon.stats.questions == 1

    run(scenario)
