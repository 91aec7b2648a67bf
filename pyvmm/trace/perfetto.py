# SPDX-License-Identifier: Apache-2.0
"""Events as a Perfetto trace, which ui.perfetto.dev and `trace_processor` open.

A trace is a sequence of protobuf messages `TracePacket` (perfetto.dev, "Perfetto trace format").
Few of its fields are needed, so they are encoded here, by the numbers in the public definitions
`trace_packet.proto`, `track_event.proto`, `track_descriptor.proto` and `debug_annotation.proto`.

The guest is a process. Each device has a track, and so has each of its queues; an event is an
instant on one of them, with its fields as arguments. Sizes of the balloon and buffers in flight are
counters. Times are those of the events: CLOCK_MONOTONIC of the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pyvmm.trace.stream import TraceEvent
from pyvmm_native import PAGE_BYTES

_VARINT, _BYTES = 0, 2
# trace.proto, trace_packet.proto
_TRACE_PACKET = 1
_PACKET_TIMESTAMP, _PACKET_SEQUENCE_ID, _PACKET_EVENT, _PACKET_DESCRIPTOR = 8, 10, 11, 60
_PACKET_SEQUENCE_FLAGS, _INCREMENTAL_STATE_CLEARED = 13, 1
# track_descriptor.proto, process_descriptor.proto
_TRACK_UUID, _TRACK_NAME, _TRACK_PROCESS, _TRACK_PARENT, _TRACK_COUNTER = 1, 2, 3, 5, 8
_PROCESS_PID, _PROCESS_NAME = 1, 6
# track_event.proto
_EVENT_ANNOTATION, _EVENT_TYPE, _EVENT_TRACK, _EVENT_CATEGORY = 4, 9, 11, 22
_EVENT_NAME, _EVENT_COUNTER = 23, 30
_INSTANT, _COUNTER = 3, 4
# debug_annotation.proto
_ANNOTATION_UINT, _ANNOTATION_STRING, _ANNOTATION_NAME = 3, 6, 10

_SEQUENCE_ID, _GUEST_UUID, _FIRST_UUID = 1, 1, 2
_COUNTED_PAGES = {"target": "balloon target", "actual": "balloon size"}
"""Kinds whose pages are counters, and the names of those."""


def _number(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _uint(field: int, value: int) -> bytes:
    return _number(field << 3 | _VARINT) + _number(value)


def _bytes(field: int, data: bytes) -> bytes:
    return _number(field << 3 | _BYTES) + _number(len(data)) + data


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode(errors="replace"))


def _packet(content: bytes) -> bytes:
    return _bytes(_TRACE_PACKET, content + _uint(_PACKET_SEQUENCE_ID, _SEQUENCE_ID))


def _guest() -> bytes:
    process = _uint(_PROCESS_PID, 1) + _text(_PROCESS_NAME, "pyvmm guest")
    track = _uint(_TRACK_UUID, _GUEST_UUID) + _bytes(_TRACK_PROCESS, process)
    flags = _uint(_PACKET_SEQUENCE_FLAGS, _INCREMENTAL_STATE_CLEARED)
    return _packet(_bytes(_PACKET_DESCRIPTOR, track) + flags)


START = _guest()
"""The first bytes of every trace that is written here."""


def perfetto_trace(events: Iterable[TraceEvent]) -> Iterator[bytes]:
    """Yield the parts of a trace with all `events`."""
    yield START
    trace = _Trace()
    for event in events:
        yield from trace.packets(event)


class _Trace:
    """The tracks of a trace so far, and the buffers in flight of each queue."""

    def __init__(self) -> None:
        self._tracks: dict[tuple[str, ...], int] = {}
        self._in_flight: dict[tuple[str, str], set[int | str]] = {}

    def packets(self, event: TraceEvent) -> Iterator[bytes]:
        device = event.device or "machine"
        path = (device, event.queue) if event.queue else (device,)
        yield from self._track(path)
        yield self._event(event.time_ns, self._tracks[path], _INSTANT, _instant(event))
        if event.kind in _COUNTED_PAGES and isinstance(pages := event.fields.get("pages"), int):
            name = f"{_COUNTED_PAGES[event.kind]} (bytes)"
            yield from self._counter(event, name, pages * PAGE_BYTES)
        elif event.kind in ("chain", "used"):
            # By their heads: a buffer that was put back is taken twice.
            heads = self._in_flight.setdefault((device, event.queue), set())
            (heads.add if event.kind == "chain" else heads.discard)(event.fields.get("head", 0))
            name = f"{device} {event.queue}: buffers in flight"
            yield from self._counter(event, name, len(heads))

    def _track(self, path: tuple[str, ...], *, counter: bool = False) -> Iterator[bytes]:
        """Yield the descriptors of a track and of those above it that are new."""
        for length in range(1, len(path) + 1):
            if path[:length] in self._tracks:
                continue
            uuid = self._tracks[path[:length]] = _FIRST_UUID + len(self._tracks)
            parent = self._tracks[path[: length - 1]] if length > 1 else _GUEST_UUID
            track = _uint(_TRACK_UUID, uuid) + _uint(_TRACK_PARENT, parent)
            track += _text(_TRACK_NAME, path[length - 1])
            if counter:
                track += _bytes(_TRACK_COUNTER, b"")
            yield _packet(_bytes(_PACKET_DESCRIPTOR, track))

    def _counter(self, event: TraceEvent, name: str, value: int) -> Iterator[bytes]:
        path = (f"counter {name}",)
        yield from self._track(path, counter=True)
        yield self._event(event.time_ns, self._tracks[path], _COUNTER, _uint(_EVENT_COUNTER, value))

    @staticmethod
    def _event(time_ns: int, track: int, kind: int, content: bytes) -> bytes:
        event = _uint(_EVENT_TYPE, kind) + _uint(_EVENT_TRACK, track) + content
        return _packet(_uint(_PACKET_TIMESTAMP, time_ns) + _bytes(_PACKET_EVENT, event))


def _instant(event: TraceEvent) -> bytes:
    register = event.fields.get("register")
    name = f"{event.kind} {register}" if register else event.kind
    content = _text(_EVENT_NAME, name) + _text(_EVENT_CATEGORY, event.kind)
    for field, value in event.fields.items():
        annotation = _text(_ANNOTATION_NAME, field)
        if isinstance(value, int):
            annotation += _uint(_ANNOTATION_UINT, value)
        else:
            annotation += _text(_ANNOTATION_STRING, value)
        content += _bytes(_EVENT_ANNOTATION, annotation)
    return content
