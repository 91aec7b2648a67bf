# SPDX-License-Identifier: Apache-2.0
"""An exported trace in Perfetto's trace processor, the reader behind ui.perfetto.dev.

It runs where `trace_processor_shell` is in PATH: no package of Debian or PyPI has the program, and
tests do not download it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from perfetto.trace_processor import TraceProcessor, TraceProcessorConfig

from pyvmm.trace.perfetto import perfetto_trace
from tests.pyvmm.trace.test_export import EVENTS

PROGRAM = shutil.which("trace_processor_shell")

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="trace_processor_shell is not in PATH")


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Any]:
    path = tmp_path / "trace"
    path.write_bytes(b"".join(perfetto_trace(EVENTS)))
    with TraceProcessor(trace=str(path), config=TraceProcessorConfig(bin_path=PROGRAM)) as trace:
        yield trace


def test_the_trace_processor_finds_every_event_with_its_fields(trace: Any) -> None:
    rows = list(trace.query("select ts, name, category, arg_set_id from slice order by ts"))
    assert [(row.ts, row.name, row.category) for row in rows] == [
        (event.time_ns, event.kind, event.kind) for event in EVENTS
    ]
    query = f"select key, int_value from args where arg_set_id = {rows[2].arg_set_id}"
    numbers = {row.key: row.int_value for row in trace.query(query)}
    assert numbers["debug.head"] == EVENTS[2].fields["head"]


def test_the_trace_processor_finds_the_counters(trace: Any) -> None:
    query = (
        "select counter_track.name as name, value from counter"
        " join counter_track on counter.track_id = counter_track.id order by ts"
    )
    assert [(row.name, row.value) for row in trace.query(query)] == [
        ("counter balloon inflate: buffers in flight", 1),
        ("counter balloon inflate: buffers in flight", 0),
        ("counter balloon target (bytes)", 1 << 20),
    ]


def test_the_trace_processor_reports_no_errors(trace: Any) -> None:
    query = "select name, value from stats where severity in ('error', 'data_loss') and value > 0"
    assert [(row.name, row.value) for row in trace.query(query)] == []
