# SPDX-License-Identifier: Apache-2.0
"""Events in the formats of other programs: JSON lines, a Perfetto trace, one HTML page.

Text in events may come from the guest. JSON escapes what is not ASCII and control characters; the
page has the events as JSON in which "<" is escaped, too, and shows them as text only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from importlib.resources import files
from typing import Any, NamedTuple

from pyvmm.trace import perfetto
from pyvmm.trace.stream import TraceEvent

_EVENTS_MARK = "/*EVENTS*/"
_LARGEST_EXACT = (1 << 53) - 1
"""The largest number in JavaScript up to which all integers are exact."""


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


def html_page(events: Iterable[TraceEvent]) -> Iterator[bytes]:
    """Yield the parts of one page that shows the events and needs no network.

    An event is a row: sequence number, nanoseconds since the first, kind, device, queue, fields.
    Kind, device and queue are places in lists of the names that occur, which follow the rows.
    """
    before, after = _template().split(_EVENTS_MARK)
    yield before.encode()
    lists: tuple[dict[str, int], ...] = ({}, {}, {})
    first_ns: int | None = None
    yield b'{"rows": [\n'
    for event in events:
        values = (event.kind, event.device, event.queue)
        places = [
            known.setdefault(value, len(known)) for known, value in zip(lists, values, strict=True)
        ]
        fields = {name: _for_script(value) for name, value in event.fields.items()}
        separator = b"" if first_ns is None else b",\n"
        first_ns = event.time_ns if first_ns is None else first_ns
        row = [event.seq, event.time_ns - first_ns, *places, fields]
        yield separator + _in_script(json.dumps(row, separators=(",", ":")))
    kinds, devices, queues = (list(known) for known in lists)
    names = json.dumps({"kinds": kinds, "devices": devices, "queues": queues})
    yield b'\n], "names": ' + _in_script(names) + b"}"
    yield after.encode()


def _in_script(text: str) -> bytes:
    """Return JSON that can stand in a script element: it cannot end it, or begin a comment."""
    return text.replace("<", "\\u003c").encode()


def _for_script(value: int | str) -> int | str:
    """Return a number that JavaScript cannot represent as text."""
    return f"{value:#x}" if isinstance(value, int) and value > _LARGEST_EXACT else value


def _template() -> str:
    return files("pyvmm.trace").joinpath("page.html").read_text("utf-8")


FORMATS = {
    "jsonl": ExportFormat(json_lines, b'{"seq": '),
    "perfetto": ExportFormat(perfetto.perfetto_trace, perfetto.START),
    "html": ExportFormat(html_page, b"<!doctype html>\n<title>pyvmm recording</title>"),
}
"""Formats by the name that a person gives."""
