# SPDX-License-Identifier: Apache-2.0
"""A reader of Perfetto traces by Perfetto's own definitions, which its Python package has.

Its trace processor, the reader behind ui.perfetto.dev, is a program: see `trace_processor`.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.unknown_fields import UnknownFieldSet
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace


def read_packets(data: bytes) -> list[Any]:
    """Return the packets of a trace; all fields in it are ones that Perfetto knows."""
    trace = Trace()
    trace.ParseFromString(data)
    check_fields(trace)
    return list(trace.packet)


def check_fields(message: Any) -> None:
    unknown = [field.field_number for field in UnknownFieldSet(message)]
    assert not unknown, (message.DESCRIPTOR.name, unknown)
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for each in value if field.is_repeated else [value]:
                check_fields(each)
