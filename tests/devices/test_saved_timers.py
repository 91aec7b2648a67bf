# SPDX-License-Identifier: Apache-2.0
"""Timers in a device's saved state keep the time that remains, on any new clock."""

from __future__ import annotations

import pytest

from devices.state import Fields, Payload, StateError
from devices.testing import FakeTimers
from devices.timers import check_timer, save_timer


def test_a_deadline_is_restored_relative_to_the_new_clock() -> None:
    old, new = FakeTimers(), FakeTimers()
    expired: list[int] = []
    saved, restored = old.timer(lambda: None), new.timer(lambda: expired.append(new.now_ns()))
    new.advance(1_000_000)
    saved.arm(100)
    old.advance(30)
    check_timer(Fields("timer", save_timer(saved)), restored)()
    new.advance(1_000)
    assert expired == [1_000_070]


def test_a_timer_that_was_not_armed_is_cancelled() -> None:
    timers = FakeTimers()
    saved, restored = timers.timer(lambda: None), timers.timer(lambda: None)
    restored.arm(100)
    check_timer(Fields("timer", save_timer(saved)), restored)()
    assert restored.remaining_ns is None


@pytest.mark.parametrize("payload", [{}, {"remaining_ns": [1, 2]}, {"remaining_ns": [1 << 62]}])
def test_an_impossible_deadline_is_refused(payload: Payload) -> None:
    timer = FakeTimers().timer(lambda: None)
    timer.arm(7)
    with pytest.raises(StateError, match="remaining_ns"):
        check_timer(Fields("timer", payload), timer)
    assert timer.remaining_ns == 7
