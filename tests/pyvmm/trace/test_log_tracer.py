# SPDX-License-Identifier: Apache-2.0
"""Device events in Python's logging."""

from __future__ import annotations

import logging

import pytest

from pyvmm.trace.logging import WARNINGS, LogTracer


@pytest.mark.parametrize("error", WARNINGS)
def test_errors_of_the_guest_are_warnings(caplog: pytest.LogCaptureFixture, error: str) -> None:
    with caplog.at_level(logging.WARNING, "pyvmm.guest"):
        LogTracer().event(f"balloon.{error}", queue=2, length=4096, reason="too long")
        LogTracer().event("balloon.inflate", pages=7)
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", f"balloon.{error} queue=2 length=0x1000 reason=too long")
    ]


def test_other_events_are_for_debugging(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "pyvmm.guest"):
        LogTracer().event("balloon.inflate", pages=7)
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("DEBUG", "balloon.inflate pages=7")
    ]
