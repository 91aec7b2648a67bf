# SPDX-License-Identifier: Apache-2.0
"""`FakeTimers` behaves as `devices.ports.Timers` requires, on a clock that a test moves."""

from __future__ import annotations

from functools import partial

from devices.ports import Timer, Timers
from devices.testing import FakeTimers


def test_timers_expire_in_order_and_see_the_clock_at_their_deadlines() -> None:
    timers = FakeTimers()
    expired: list[tuple[str, int]] = []

    def note(name: str) -> None:
        expired.append((name, timers.now_ns()))

    for name, delay_ns in (("late", 30), ("early", 10), ("beyond", 31)):
        timers.timer(partial(note, name)).arm(delay_ns)
    timers.advance(30)
    assert expired == [("early", 10), ("late", 30)]
    assert timers.now_ns() == 30


def test_a_timer_expires_once_and_may_arm_itself_again() -> None:
    timers: Timers = FakeTimers()
    assert isinstance(timers, FakeTimers)
    expired: list[int] = []

    def on_expiry() -> None:
        assert timer.remaining_ns is None
        expired.append(timers.now_ns())
        if len(expired) < 3:
            timer.arm(10)

    timer: Timer = timers.timer(on_expiry)
    timer.arm(10)
    timers.advance(1000)
    assert expired == [10, 20, 30]
    assert timers.now_ns() == 1000


def test_arming_replaces_the_deadline_and_cancelling_removes_it() -> None:
    timers = FakeTimers()
    expired: list[int] = []
    timer = timers.timer(lambda: expired.append(timers.now_ns()))
    assert timer.remaining_ns is None
    timer.arm(10)
    timer.arm(50)
    timers.advance(20)
    assert timer.remaining_ns == 30
    timer.cancel()
    timers.advance(100)
    assert timer.remaining_ns is None
    assert expired == []
