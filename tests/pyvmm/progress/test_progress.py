# SPDX-License-Identifier: Apache-2.0
"""Progress of work in stages, on a terminal and elsewhere."""

from __future__ import annotations

import io
import os
import pty
from contextlib import suppress

import pytest

from pyvmm.progress.reporter import PlainLines, show_progress


class FakeClock:
    """A clock that a test advances."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("pyvmm.progress.reporter.time.monotonic", lambda: self.now)


def test_without_a_terminal_every_stage_is_one_line() -> None:
    stream = io.StringIO()
    with show_progress(stream) as progress:
        progress.stage("Unpacking")
        progress.advance()
        progress.stage("Building", 100)
        progress.advance(100)
    assert stream.getvalue() == "Unpacking\nBuilding\n"


def test_a_long_stage_reports_each_quarter_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = FakeClock(monkeypatch), io.StringIO()
    progress = PlainLines(stream)
    progress.stage("Building", 100)
    for _ in range(120):
        clock.now += 1.0
        progress.advance()
    expected = ["Building", "Building: 25 %", "Building: 50 %", "Building: 75 %"]
    assert stream.getvalue().splitlines() == expected


def test_a_terminal_shows_bars() -> None:
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as stream, show_progress(stream) as progress:
        progress.stage("Unpacking")
        progress.stage("Building", 10)
        progress.advance(4)
    shown = b""
    with suppress(OSError):  # EIO: the end of a terminal that no process has open
        while data := os.read(leader, 1 << 16):
            shown += data
    os.close(leader)
    assert b"Unpacking" in shown
    assert b"Building" in shown
    assert b"100%" in shown
