# SPDX-License-Identifier: Apache-2.0
"""The benchmark of events: the work, its watchers, and the counter of instructions."""

from __future__ import annotations

import shutil

import pytest

pytest.importorskip("bench")

from bench import watching
from bench.measure import Plan
from bench.targets import TARGETS
from bench.watched_work import EXIT, INFLATE_3, WATCHERS, TracedBalloon
from pyvmm.progress.reporter import Silent


@pytest.mark.parametrize("kind", [EXIT, INFLATE_3])
@pytest.mark.parametrize("watcher", WATCHERS)
def test_each_watcher_reads_all_events_of_the_work(kind: str, watcher: str) -> None:
    balloon = TracedBalloon(watcher)
    for _ in range(2):  # it can be watched again
        with balloon.watched():
            for _ in range(3):
                balloon.work(kind)()


def test_times_and_instructions_are_measured_for_each_watcher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[tuple[str, ...]] = []

    def count(*arguments: str) -> int:
        ran.append(arguments)
        return int(arguments[-1]) * 7 + 1000 if arguments[0] == "-m" else 5

    monkeypatch.setattr(watching, "_callgrind", count)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    cases = {case.name: case for case in watching.measure(Plan(True, Silent()))}
    for kind in (EXIT, INFLATE_3):
        for what in ("processor time", "instructions"):
            assert set(cases[f"{kind}, {what}"].rounds) == set(WATCHERS)
        assert set(map(tuple, cases[f"{kind}, instructions"].rounds.values())) == {(7.0,)}
    assert all(t.case in cases for t in TARGETS if t.bench == "watching")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    ran.clear()
    without = watching.measure(Plan(True, Silent()))
    assert [case.unit for case in without] == ["us", "us"]
    assert ran == []


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_callgrind_counts_the_instructions_of_an_interpreter() -> None:
    few, many = (watching._callgrind("-c", f"for _ in range({n}): pass") for n in (10, 100_010))
    assert 10 * 100_000 < many - few < 1000 * 100_000
