# SPDX-License-Identifier: Apache-2.0
"""Events in other formats: what a reader of each finds in it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from pyvmm.trace.export import FORMATS, html_page, json_lines
from pyvmm.trace.perfetto import perfetto_trace
from pyvmm.trace.stream import TraceEvent
from tests.pyvmm.trace.perfetto_decoder import decode

HOSTILE = "</script><script>alert(1)</script><!-- \x1b[31m & \u202e"
ENTRY = {"device": "balloon", "queue": "inflate"}
EVENTS = [
    TraceEvent(0, 1000, "status", "balloon", "", {"before": 0, "status": 1, "names": HOSTILE}),
    TraceEvent(1, 2000, "chain", "balloon", "inflate", {**ENTRY, "head": 3, "gpa": 2**64 - 1}),
    TraceEvent(2, 2500, "used", "balloon", "inflate", {**ENTRY, "head": 3}),
    TraceEvent(3, 3000, "target", "balloon", "", {"pages": 256}),
    TraceEvent(4, 4000, "migration.round", "", "", {"round": 1}),
    TraceEvent(5, 5000, HOSTILE, "", "", {}),
]


def test_json_lines_have_all_of_each_event() -> None:
    data = b"".join(json_lines(EVENTS))
    assert data.isascii()
    found = [json.loads(line) for line in data.splitlines()]
    assert [event["seq"] for event in found] == [*range(6)]
    assert found[1] == {
        "seq": 1,
        "time-ns": 2000,
        "kind": "chain",
        "device": "balloon",
        "queue": "inflate",
        "fields": EVENTS[1].fields,
    }
    assert found[4]["device"] is found[4]["queue"] is None


def test_a_perfetto_trace_has_a_track_for_each_device_and_queue() -> None:
    packets = decode("Trace", b"".join(perfetto_trace(EVENTS)))["packet"]
    tracks = {
        packet["track_descriptor"]["uuid"]: packet["track_descriptor"]
        for packet in packets
        if "track_descriptor" in packet
    }
    assert len(tracks) == sum("track_descriptor" in packet for packet in packets)
    (process,) = [track for track in tracks.values() if "process" in track]
    assert process["process"]["process_name"] == "pyvmm guest"

    def path(uuid: int) -> list[str]:
        track = tracks[uuid]
        return [] if track is process else [*path(track["parent_uuid"]), track["name"]]

    found = [packet for packet in packets if packet.get("track_event", {}).get("type") == 3]
    assert [packet["timestamp"] for packet in found] == [event.time_ns for event in EVENTS]
    places = [path(packet["track_event"]["track_uuid"]) for packet in found]
    balloon, queue, machine = ["balloon"], ["balloon", "inflate"], ["machine"]
    assert places == [balloon, queue, queue, balloon, machine, machine]
    assert found[1]["track_event"]["name"] == "chain"
    arguments = {
        each["name"]: each.get("uint_value", each.get("string_value"))
        for each in found[1]["track_event"]["debug_annotations"]
    }
    assert arguments == EVENTS[1].fields


def test_a_perfetto_trace_counts_buffers_and_pages() -> None:
    packets = decode("Trace", b"".join(perfetto_trace(EVENTS)))["packet"]
    names = {
        packet["track_descriptor"]["uuid"]: packet["track_descriptor"]["name"]
        for packet in packets
        if "counter" in packet.get("track_descriptor", {})
    }
    counts = [
        (names[event["track_uuid"]], event["counter_value"])
        for packet in packets
        if (event := packet.get("track_event", {})).get("type") == 4
    ]
    assert counts == [
        ("counter balloon inflate: buffers in flight", 1),
        ("counter balloon inflate: buffers in flight", 0),
        ("counter balloon target (bytes)", 1 << 20),
    ]


def test_a_buffer_that_is_taken_again_is_counted_once() -> None:
    again = [EVENTS[1], EVENTS[1]._replace(seq=2), EVENTS[2]]
    packets = decode("Trace", b"".join(perfetto_trace(again)))["packet"]
    events = [packet.get("track_event", {}) for packet in packets]
    assert [event["counter_value"] for event in events if event.get("type") == 4] == [1, 1, 0]


class Page(HTMLParser):
    """The scripts of a page by their type, and the addresses that it names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: dict[str, str] = {}
        self.addresses: list[str] = []
        self._kind: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.addresses += [values[name] or "" for name in ("src", "href") if name in values]
        self._kind = (values.get("type") or "code") if tag == "script" else None
        if self._kind:
            assert self._kind not in self.scripts
            self.scripts[self._kind] = ""

    def handle_data(self, data: str) -> None:
        if self._kind:
            self.scripts[self._kind] += data

    def handle_endtag(self, tag: str) -> None:
        self._kind = None


def test_the_page_has_all_events_and_nothing_of_the_guest_is_markup() -> None:
    text = b"".join(html_page(EVENTS)).decode()
    page = Page(text)
    assert page.addresses == []
    assert not re.search(r"https?:", text)
    assert "innerHTML" not in text
    data = json.loads(page.scripts["application/json"])
    names = data["names"]
    found = [
        (seq, ns, names["kinds"][kind], names["devices"][device], names["queues"][queue], fields)
        for seq, ns, kind, device, queue, fields in data["rows"]
    ]
    assert found[0] == (0, 0, "status", "balloon", "", EVENTS[0].fields)
    # A number that JavaScript cannot represent exactly is text.
    assert found[1][5]["gpa"] == "0xffffffffffffffff"
    assert found[5][2] == HOSTILE
    assert len(found) == len(EVENTS)


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_begins_with_its_mark(name: str) -> None:
    form = FORMATS[name]
    assert b"".join(form.export(EVENTS)).startswith(form.start)
