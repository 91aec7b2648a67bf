# SPDX-License-Identifier: Apache-2.0
"""Auto-converge throttles by the figures of the rounds, like QEMU's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyvmm.migration.auto_converge import AutoConverge
from pyvmm.migration.progress import Settings

ON = Settings(auto_converge=True)


def percentages(settings: Settings, *rounds: tuple[int, int, float]) -> list[int]:
    auto_converge = AutoConverge()
    return [auto_converge.judge(settings, *each) for each in rounds]


def test_every_second_bad_period_increases_the_throttle() -> None:
    bad = (51, 100, 1.0)
    assert percentages(ON, *[bad] * 6) == [0, 20, 20, 30, 30, 40]


def test_a_period_is_bad_above_the_trigger_threshold() -> None:
    good = (50, 100, 1.0)
    assert percentages(ON, *[good] * 4) == [0, 0, 0, 0]
    tolerant = Settings(auto_converge=True, throttle_trigger_threshold=100)
    assert percentages(tolerant, *[(100, 100, 1.0)] * 4) == [0, 0, 0, 0]
    assert percentages(tolerant, *[(101, 100, 1.0)] * 2) == [0, 20]


def test_good_periods_do_not_lower_the_throttle() -> None:
    bad, good = (100, 100, 1.0), (0, 100, 1.0)
    assert percentages(ON, bad, good, bad, good, bad, bad) == [0, 0, 20, 20, 20, 30]


def test_the_throttle_is_limited() -> None:
    settings = Settings(auto_converge=True, cpu_throttle_increment=99, max_cpu_throttle=75)
    assert percentages(settings, *[(9, 0, 1.0)] * 6) == [0, 20, 20, 75, 75, 75]


def test_short_rounds_are_judged_together() -> None:
    short = [(6, 10, 0.25)] * 8
    assert percentages(ON, *short) == [0] * 7 + [20]
    one_bad = [(9, 10, 0.25), *[(1, 10, 0.25)] * 3]
    assert percentages(ON, *one_bad * 2) == [0] * 8


@given(st.lists(st.tuples(st.integers(0), st.integers(0), st.floats(0, 1e6))))
def test_without_auto_converge_nothing_is_throttled(rounds: list[tuple[int, int, float]]) -> None:
    assert not any(percentages(Settings(), *rounds))
