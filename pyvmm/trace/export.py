# SPDX-License-Identifier: Apache-2.0
"""Events in the formats of other programs: JSON lines, a Perfetto trace.

Text in events may come from the guest. JSON escapes what is not ASCII and control characters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from pyvmm.trace import perfetto
from pyvmm.trace.stream import TraceEvent


class ExportFormat(NamedTuple):
    """A format: the function that yields the parts of a file, and the bytes it begins with."""

    export: Callable[[Iterable[TraceEvent]], Iterator[bytes]]
    start: bytes


def event_json(event: TraceEvent) -> str:
    """Return the event as one line of JSON."""
    document: dict[str, Any] = {
        "seq": event.seq,
        "time-ns": event.time_ns,
        "kind": event.kind,
        "device": event.device or None,
        "queue": event.queue or None,
        "fields": event.fields,
    }
    return json.dumps(document)


def json_lines(events: Iterable[TraceEvent]) -> Iterator[bytes]:
    """Yield the events as lines of JSON."""
    for event in events:
        yield f"{event_json(event)}\n".encode()


FORMATS = {
    "jsonl": ExportFormat(json_lines, b'{"seq": '),
    "perfetto": ExportFormat(perfetto.perfetto_trace, perfetto.START),
}
"""Formats by the name that a person gives."""
