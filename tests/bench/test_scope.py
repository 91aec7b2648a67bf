# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the scope's page: its cases, and a machine without its browser."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("bench")

from bench import scope, scope_page
from bench.busy_queue import busy_queue
from bench.measure import Plan
from bench.results import new_result
from bench.scope_cases import WINDOWS
from bench.tables import targets_table
from bench.targets import TARGETS
from pyvmm.errors import UserError
from pyvmm.progress.reporter import Silent


def test_loading_and_frames_are_measured_in_each_window() -> None:
    cases = {case.name: case for case in scope.measure(Plan(True, Silent()))}
    assert all(set(case.rounds) == set(WINDOWS) for case in cases.values())
    assert {target.case for target in TARGETS if target.bench == "scope"} <= set(cases)


def test_targets_of_the_page_are_times_with_their_unit() -> None:
    cases = list(scope.PageCases().frames.values())
    for case in cases:
        for window in WINDOWS:
            case.add(window, {"": 40.0})
            case.add(window, {"": 60.0})
    rows = targets_table([new_result("scope", "The page", False, cases)]).rows
    assert [row[1:] for row in rows] == [
        ("50 ms", "20 ms", "50 ms", "40 to 60", "within limit; 2 rounds")
    ] * 2


def test_a_machine_without_chromium_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scope_page, "_CHROMIUM", Path("/nowhere/chromium"))
    with pytest.raises(UserError) as error:
        scope.measure(Plan(True, Silent()))
    assert "/nowhere/chromium" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_busy_queue_makes_as_many_events_as_are_asked_for() -> None:
    assert sum(batch.event_count for batch in busy_queue(20_000)) == 20_000
