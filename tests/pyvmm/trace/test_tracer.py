# SPDX-License-Identifier: Apache-2.0
"""The tracer of a machine: its log, and the events that are kept while it is watched."""

from __future__ import annotations

import logging

import pytest

from pyvmm.trace.stream import events_of, make_event
from pyvmm.trace.tracer import EventTracer


@pytest.mark.parametrize("level", [logging.WARNING, logging.DEBUG])
def test_frequent_events_are_made_for_the_debug_log_and_for_a_watcher(
    caplog: pytest.LogCaptureFixture, level: int
) -> None:
    with caplog.at_level(level, "pyvmm.guest"):
        tracer = EventTracer()
        logged = level == logging.DEBUG
        assert (tracer.watched, tracer.quiet.watched) == (logged, False)
        tracer.start()
        assert (tracer.watched, tracer.quiet.watched) == (True, True)
        tracer.stop()
        assert (tracer.watched, tracer.quiet.watched) == (logged, False)


def test_events_are_logged_watched_or_not_and_quiet_ones_never(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG, "pyvmm.guest"):
        tracer = EventTracer()
        tracer.event("balloon.bad_payload", why="first")
        tracer.start()
        tracer.event("balloon.bad_payload", why="second")
        tracer.quiet.event("register_read", table="uart", register="lsr", value=0)
        assert tracer.quiet.quiet is tracer.quiet
        batch = tracer.stop()
    assert [record.message for record in caplog.records] == [
        "balloon.bad_payload why=first",
        "balloon.bad_payload why=second",
    ]
    assert batch is not None
    assert [(event.device, event.kind, event.fields) for event in events_of(batch)] == [
        ("balloon", "bad_payload", {"why": "second"}),
        ("uart", "register_read", {"table": "uart", "register": "lsr", "value": 0}),
    ]


def test_events_of_migrations_belong_to_no_device() -> None:
    event = make_event(7, 1000, "migration.round", {"round": 1})
    assert (event.kind, event.device, event.queue) == ("migration.round", "", "")
