# SPDX-License-Identifier: Apache-2.0
"""Progress of work that is mostly quick."""

from __future__ import annotations

import time

import pytest

from pyvmm.progress.late import QUIET_S, LateProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the clock by one that stands at its only member."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_quick_work_shows_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with LateProgress("Exporting events", 10) as progress:
        for _ in range(10):
            clock[0] += QUIET_S / 11
            progress.advance()
    assert capsys.readouterr().err == ""


def test_long_work_shows_all_steps_from_its_start(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with LateProgress("Exporting events", 100) as progress:
        progress.advance(40)
        clock[0] += QUIET_S
        progress.advance(10)
        assert capsys.readouterr().err == "Exporting events\n"
        clock[0] += 20
        progress.advance(30)
    assert capsys.readouterr().err == "Exporting events: 80 %\n"
