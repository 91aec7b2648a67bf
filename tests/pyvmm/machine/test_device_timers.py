# SPDX-License-Identifier: Apache-2.0
"""Timers of device models: on a real event loop, across pauses, and in saved state."""

from __future__ import annotations

import asyncio
import threading
import time

from devices.state import Fields
from devices.testing.timers import FakeTimers
from devices.timers import check_timer, save_timer
from pyvmm.machine.device_timers import DeviceTimers

MS = 1_000_000
FAR_NS = 3600 * 1000 * MS


class ExpiryLog:
    """Device timers, and the names of those that have expired."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.errors: list[BaseException] = []
        self.timers = DeviceTimers(self.lock, self.errors.append)
        self.expired: list[str] = []

    def expire(self, name: str) -> None:
        assert self.lock.locked()
        self.expired.append(name)


def test_timers_expire_in_order_and_once() -> None:
    async def main() -> None:
        test = ExpiryLog()
        late = test.timers.timer(lambda: test.expire("late"))
        early = test.timers.timer(lambda: test.expire("early"))
        cancelled = test.timers.timer(lambda: test.expire("cancelled"))
        late.arm(30 * MS)  # before there is a loop
        test.timers.start(asyncio.get_running_loop())
        early.arm(5 * MS)
        cancelled.arm(10 * MS)
        cancelled.cancel()
        assert cancelled.remaining_ns is None
        await asyncio.sleep(0.1)
        assert test.expired == ["early", "late"]
        assert late.remaining_ns is None
        assert test.errors == []

    asyncio.run(main())


def test_arming_again_replaces_the_deadline() -> None:
    async def main() -> None:
        test = ExpiryLog()
        timer = test.timers.timer(lambda: test.expire("timer"))
        test.timers.start(asyncio.get_running_loop())
        timer.arm(FAR_NS)
        timer.arm(5 * MS)
        await asyncio.sleep(0.05)
        assert test.expired == ["timer"]
        timer.arm(5 * MS)
        timer.arm(FAR_NS)
        await asyncio.sleep(0.05)
        assert test.expired == ["timer"]
        timer.cancel()

    asyncio.run(main())


def test_another_thread_may_arm() -> None:
    async def main() -> None:
        test = ExpiryLog()
        timer = test.timers.timer(lambda: test.expire("timer"))
        test.timers.start(asyncio.get_running_loop())

        def arm() -> None:
            with test.lock:
                timer.arm(5 * MS)

        await asyncio.to_thread(arm)
        await asyncio.sleep(0.05)
        assert test.expired == ["timer"]

    asyncio.run(main())


def test_a_timer_rearmed_while_the_lock_is_held_does_not_expire_early() -> None:
    async def main() -> None:
        test = ExpiryLog()
        timer = test.timers.timer(lambda: test.expire("timer"))
        test.timers.start(asyncio.get_running_loop())
        timer.arm(5 * MS)
        held = threading.Event()

        def rearm() -> None:
            with test.lock:
                held.set()
                time.sleep(0.05)  # the deadline passes, and the event loop waits for the lock
                timer.arm(FAR_NS)

        thread = threading.Thread(target=rearm)
        thread.start()
        assert held.wait(10)
        await asyncio.sleep(0.1)
        thread.join()
        assert test.expired == []
        assert timer.remaining_ns is not None
        assert test.errors == []
        timer.cancel()

    asyncio.run(main())


def test_a_timer_can_be_armed_after_its_loop_was_closed() -> None:
    test = ExpiryLog()
    timer = test.timers.timer(lambda: test.expire("timer"))

    async def main() -> None:
        test.timers.start(asyncio.get_running_loop())

    asyncio.run(main())
    timer.arm(0)
    assert timer.remaining_ns == 0
    assert test.expired == []


def test_the_clock_stops_while_the_guest_is_paused() -> None:
    async def main() -> None:
        test = ExpiryLog()
        timer = test.timers.timer(lambda: test.expire("timer"))
        test.timers.start(asyncio.get_running_loop())
        timer.arm(40 * MS)
        test.timers.stop()
        stopped_ns, remaining_ns = test.timers.now_ns(), timer.remaining_ns
        await asyncio.sleep(0.1)
        assert (test.timers.now_ns(), timer.remaining_ns) == (stopped_ns, remaining_ns)
        assert test.expired == []
        test.timers.start(asyncio.get_running_loop())
        begin = time.monotonic()
        while not test.expired:
            await asyncio.sleep(0.001)
        assert time.monotonic() - begin > 0.02

    asyncio.run(main())


def test_an_exception_of_a_callback_is_reported() -> None:
    async def main() -> None:
        test = ExpiryLog()
        error = RuntimeError("a bug")

        def fail() -> None:
            raise error

        timer = test.timers.timer(fail)
        test.timers.start(asyncio.get_running_loop())
        timer.arm(0)
        await asyncio.sleep(0.05)
        assert test.errors == [error]
        assert not test.lock.locked()

    asyncio.run(main())


def test_a_deadline_is_saved_as_the_remaining_time() -> None:
    old, new = FakeTimers(), FakeTimers()
    saved, restored = old.timer(lambda: None), new.timer(lambda: None)
    new.advance(12345)
    for armed in (True, False):
        saved.cancel()
        restored.arm(1)
        if armed:
            saved.arm(1000)
            old.advance(400)
        fields = Fields("timer", save_timer(saved))
        restore = check_timer(fields, restored)
        fields.done()
        restore()
        assert restored.remaining_ns == (600 if armed else None)
