# SPDX-License-Identifier: Apache-2.0
"""Any number of calls schedule one callback, which sees the latest state."""

import asyncio
import threading
from collections.abc import Callable

from pyvmm.machine.coalesced_callback import CoalescedCallback


def test_many_calls_schedule_one_callback() -> None:
    waiting: list[Callable[[], None]] = []
    seen: list[int] = []
    value = 0
    changed = CoalescedCallback(lambda: seen.append(value), waiting.append)
    for _ in range(100_000):
        value += 1
        changed()
    assert len(waiting) == 1
    waiting.pop()()
    assert seen == [100_000]
    changed()
    assert len(waiting) == 1, "a change after the callback began schedules another"


def test_a_call_within_the_callback_schedules_another() -> None:
    waiting: list[Callable[[], None]] = []
    rounds = 0

    def again() -> None:
        nonlocal rounds
        rounds += 1
        changed()

    changed = CoalescedCallback(again, waiting.append)
    changed()
    for _ in range(3):
        waiting.pop()()
    assert rounds == 3


def test_no_change_is_lost_between_threads() -> None:
    """Several threads count up; the last callback on the loop sees the final counts."""
    lock = threading.Lock()
    count = 0

    async def main() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        seen: list[int] = []

        def soon(callback: Callable[[], None]) -> None:
            loop.call_soon_threadsafe(callback)

        changed = CoalescedCallback(lambda: seen.append(count), soon)

        def guest() -> None:
            nonlocal count
            for _ in range(5_000):
                with lock:
                    count += 1
                    changed()

        threads = [threading.Thread(target=guest) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await loop.run_in_executor(None, thread.join)
        await asyncio.sleep(0)
        return seen[-1], len(seen)

    last, calls = asyncio.run(main())
    assert last == count == 15_000
    assert calls <= count
