# SPDX-License-Identifier: Apache-2.0
"""Events in other formats: what a reader of each finds in it."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TracePacket, TrackEvent

from pyvmm.trace.export import FORMATS, json_lines
from pyvmm.trace.perfetto import perfetto_trace
from pyvmm.trace.stream import TraceEvent, events_of
from tests.pyvmm.trace.perfetto_reader import read_packets
from tests.scope.recordings import board_batches

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
    packets = read_packets(b"".join(perfetto_trace(EVENTS)))
    descriptors = [each.track_descriptor for each in packets if each.HasField("track_descriptor")]
    tracks = {track.uuid: track for track in descriptors}
    assert len(tracks) == len(descriptors)
    (process,) = [track for track in descriptors if track.HasField("process")]
    assert process.process.process_name == "pyvmm guest"

    def path(uuid: int) -> list[str]:
        track = tracks[uuid]
        return [] if track is process else [*path(track.parent_uuid), track.name]

    found = [each for each in packets if each.track_event.type == TrackEvent.TYPE_INSTANT]
    assert [each.timestamp for each in found] == [event.time_ns for event in EVENTS]
    events = [each.track_event for each in found]
    balloon, queue, machine = ["balloon"], ["balloon", "inflate"], ["machine"]
    places = [path(event.track_uuid) for event in events]
    assert places == [balloon, queue, queue, balloon, machine, machine]
    assert [event.name for event in events] == [event.kind for event in EVENTS]
    assert [list(event.categories) for event in events] == [[event.kind] for event in EVENTS]
    for event, expected in zip(events, EVENTS, strict=True):
        arguments = {each.name: value_of(each) for each in event.debug_annotations}
        assert arguments == expected.fields


def value_of(annotation: Any) -> int | str:
    value: int | str = getattr(annotation, annotation.WhichOneof("value"))
    return value


def test_a_perfetto_trace_is_one_sequence_of_packets() -> None:
    packets = read_packets(b"".join(perfetto_trace(EVENTS)))
    assert {each.trusted_packet_sequence_id for each in packets} == {1}
    cleared = TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
    assert [each.sequence_flags for each in packets] == [cleared] + [0] * (len(packets) - 1)


def test_a_perfetto_trace_counts_buffers_and_pages() -> None:
    assert counts(EVENTS) == [
        ("counter balloon inflate: buffers in flight", 1),
        ("counter balloon inflate: buffers in flight", 0),
        ("counter balloon target (bytes)", 1 << 20),
    ]


def board_events() -> list[TraceEvent]:
    """Return the events of a balloon that is initialised, inflated and deflated."""
    return list(chain.from_iterable(map(events_of, board_batches())))


def test_a_perfetto_trace_of_a_device_is_complete() -> None:
    """All that a reader relies on: names, tracks that were described before, and times in order."""
    events = board_events()
    described: dict[int, Any] = {}
    last_ns: dict[int, int] = {}
    instants, in_flight = [], [0]
    for packet in read_packets(b"".join(perfetto_trace(events))):
        if packet.HasField("track_descriptor"):
            track = packet.track_descriptor
            assert track.uuid not in described
            assert track.HasField("process") or (track.name and track.parent_uuid in described)
            described[track.uuid] = track
            continue
        event = packet.track_event
        track = described[event.track_uuid]
        assert last_ns.get(track.uuid, 0) <= packet.timestamp
        last_ns[track.uuid] = packet.timestamp
        if event.type == TrackEvent.TYPE_COUNTER:  # there are no slices that begin and end
            assert track.HasField("counter")
            assert event.HasField("counter_value")
            if "inflate: buffers in flight" in track.name:
                in_flight.append(event.counter_value)
            continue
        assert event.type == TrackEvent.TYPE_INSTANT
        assert not track.HasField("counter")
        assert event.name.startswith(event.categories[0])
        arguments = {each.name: value_of(each) for each in event.debug_annotations}
        instants.append((packet.timestamp, event.categories[0], arguments))
    assert instants == [(event.time_ns, event.kind, event.fields) for event in events]
    assert in_flight == [0, 1, 0, 1, 0, 1, 0], "three buffers, one after the other"


def test_a_buffer_that_is_taken_again_is_counted_once() -> None:
    again = [EVENTS[1], EVENTS[1]._replace(seq=2), EVENTS[2]]
    assert [value for _, value in counts(again)] == [1, 1, 0]


def counts(events: list[TraceEvent]) -> list[tuple[str, int]]:
    """Return the values of all counters of a trace, each with the counter's name."""
    packets = read_packets(b"".join(perfetto_trace(events)))
    tracks = [each.track_descriptor for each in packets]
    names = {track.uuid: track.name for track in tracks if track.HasField("counter")}
    found = [each.track_event for each in packets]
    return [
        (names[event.track_uuid], event.counter_value)
        for event in found
        if event.type == TrackEvent.TYPE_COUNTER
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_begins_with_its_mark(name: str) -> None:
    form = FORMATS[name]
    assert b"".join(form.export(EVENTS)).startswith(form.start)
