# SPDX-License-Identifier: Apache-2.0
"""A decoder of Perfetto traces by the public definitions, independent of the encoder.

`PROTOS` has the fields that a trace of ours uses, as the .proto files of Perfetto define them. A
field that is not there, or of another wire type, is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

PROTOS: dict[str, dict[int, tuple[str, str]]] = {
    "Trace": {1: ("packet", "TracePacket")},
    "TracePacket": {
        8: ("timestamp", "uint"),
        10: ("trusted_packet_sequence_id", "uint"),
        11: ("track_event", "TrackEvent"),
        13: ("sequence_flags", "uint"),
        60: ("track_descriptor", "TrackDescriptor"),
    },
    "TrackDescriptor": {
        1: ("uuid", "uint"),
        2: ("name", "string"),
        3: ("process", "ProcessDescriptor"),
        5: ("parent_uuid", "uint"),
        8: ("counter", "CounterDescriptor"),
    },
    "ProcessDescriptor": {1: ("pid", "uint"), 6: ("process_name", "string")},
    "CounterDescriptor": {},
    "TrackEvent": {
        4: ("debug_annotations", "DebugAnnotation"),
        9: ("type", "uint"),
        11: ("track_uuid", "uint"),
        22: ("categories", "string"),
        23: ("name", "string"),
        30: ("counter_value", "uint"),
    },
    "DebugAnnotation": {
        3: ("uint_value", "uint"),
        6: ("string_value", "string"),
        10: ("name", "string"),
    },
}
REPEATED = {"packet", "debug_annotations", "categories"}


def decode(kind: str, data: bytes) -> dict[str, Any]:
    """Return the fields of a message; repeated ones as lists."""
    found: dict[str, Any] = {}
    for number, wire, value in fields(data):
        name, of = PROTOS[kind][number]
        assert wire == (0 if of == "uint" else 2), name
        if of == "string":
            value = bytes(value).decode()
        elif of != "uint":
            value = decode(of, value)
        if name in REPEATED:
            found.setdefault(name, []).append(value)
        else:
            assert name not in found
            found[name] = value
    return found


def fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    at = 0
    while at < len(data):
        tag, at = number_at(data, at)
        value, at = number_at(data, at)
        if tag & 7 == 2:
            assert at + value <= len(data)
            yield tag >> 3, 2, data[at : at + value]
            at += value
        else:
            assert tag & 7 == 0
            yield tag >> 3, 0, value


def number_at(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return value, at
