# SPDX-License-Identifier: Apache-2.0
"""Exported traces in Perfetto's trace processor: see `tests.pyvmm.trace.trace_processor`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from pyvmm.trace.perfetto import perfetto_trace
from pyvmm.trace.stream import TraceEvent
from tests.pyvmm.trace.test_export import EVENTS, board_events
from tests.pyvmm.trace.trace_processor import MISSING, LoadedTrace, loaded_trace

LAST_NS = EVENTS[-1].time_ns
"""Events of a balloon on a board, which is initialised, inflated and deflated, follow EVENTS."""


@pytest.fixture(scope="module")
def board() -> list[TraceEvent]:
    return board_events()


@pytest.fixture(scope="module")
def trace(
    board: list[TraceEvent], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LoadedTrace]:
    data = b"".join(perfetto_trace([*EVENTS, *board]))
    with loaded_trace(data, tmp_path_factory.mktemp("trace")) as loaded:
        if loaded is None:
            pytest.skip(MISSING)
        yield loaded


def test_the_trace_processor_finds_every_event_with_its_fields(trace: LoadedTrace) -> None:
    query = f"select ts, name, category, arg_set_id from slice where ts <= {LAST_NS} order by ts"
    rows = list(trace.query(query))
    assert [(row.ts, row.name, row.category) for row in rows] == [
        (event.time_ns, event.kind, event.kind) for event in EVENTS
    ]
    arguments = "select key, int_value, string_value from args where arg_set_id = "
    found = {row.key: row.int_value for row in trace.query(arguments + str(rows[1].arg_set_id))}
    assert found["debug.head"] == EVENTS[1].fields["head"]
    assert found["debug.gpa"] == -1, "2^64 - 1, in a database of signed numbers"
    found = {row.key: row.string_value for row in trace.query(arguments + str(rows[0].arg_set_id))}
    assert found["debug.names"] == EVENTS[0].fields["names"]


def test_the_trace_processor_finds_the_counters(trace: LoadedTrace) -> None:
    query = (
        "select counter_track.name as name, value from counter"
        " join counter_track on counter.track_id = counter_track.id"
        f" where ts <= {LAST_NS} order by ts"
    )
    assert [(row.name, row.value) for row in trace.query(query)] == [
        ("counter balloon inflate: buffers in flight", 1),
        ("counter balloon inflate: buffers in flight", 0),
        ("counter balloon target (bytes)", 1 << 20),
    ]


def test_the_trace_processor_puts_the_events_of_a_device_on_its_tracks(
    trace: LoadedTrace, board: list[TraceEvent]
) -> None:
    query = (
        "select track.name as name, parent.name as parent, slice.category as kind from slice"
        " join track on slice.track_id = track.id left join track parent"
        f" on track.parent_id = parent.id where ts > {LAST_NS}"
    )
    found = Counter((row.parent, row.name, row.kind) for row in trace.query(query))
    assert found == Counter(
        (event.device, event.queue, event.kind) if event.queue
        else (None, event.device or "machine", event.kind)
        for event in board
    )  # fmt: skip
    assert found["balloon", "inflate", "chain"] == 3


def test_the_trace_processor_reports_no_errors(trace: LoadedTrace) -> None:
    query = "select name, value from stats where severity in ('error', 'data_loss') and value > 0"
    assert [(row.name, row.value) for row in trace.query(query)] == []
    rows = list(trace.query("select count(*) as count from slice where dur != 0"))
    assert rows[0].count == 0, "every event is an instant"
