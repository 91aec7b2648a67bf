# SPDX-License-Identifier: Apache-2.0
"""The buffers of virtio-console, described for people (VIRTIO 1.2, sections 5.3.6, 5.3.6.2).

The control queues carry messages, those of the ports plain bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

from devices.console.control import HEADER, WINDOW_SIZE, Event
from devices.virtio.description import BufferBytes, Described, Part, bounded

_CONTROL, _DATA = "VIRTIO 1.2, 5.3.6.2", "VIRTIO 1.2, 5.3.6"
_SHOWN_BYTES = 64


def describe(buffer: BufferBytes) -> list[Described]:
    """As `devices.virtio.description.Describe`."""
    describe_part = _control if buffer.queue.startswith("control") else _data
    return bounded(
        [
            *describe_part("readable", buffer.readable),
            *describe_part("writable", buffer.writable),
        ]
    )


def _data(part: Part, data: bytes) -> Iterator[Described]:
    if data:
        shown = repr(data[:_SHOWN_BYTES])[1:] + ("..." if len(data) > _SHOWN_BYTES else "")
        yield Described(part, 0, len(data), "data", shown, _DATA)


def _control(part: Part, data: bytes) -> Iterator[Described]:
    if len(data) < HEADER.size:
        if data:
            yield Described(part, 0, len(data), "header", f"only {len(data)} bytes", _CONTROL)
        return
    port, event, value = HEADER.unpack_from(data)
    name = Event(event).name if event in Event._value2member_map_ else f"unknown, {event}"
    yield Described(part, 0, 4, "id", f"port {port}", _CONTROL)
    yield Described(part, 4, 2, "event", name, _CONTROL)
    yield Described(part, 6, 2, "value", str(value), _CONTROL)
    rest = data[HEADER.size :]
    if event == Event.RESIZE and len(rest) >= WINDOW_SIZE.size:
        columns, rows = WINDOW_SIZE.unpack_from(rest)
        yield Described(part, 8, 4, "window size", f"{columns} columns, {rows} rows", _CONTROL)
    elif event == Event.PORT_NAME and rest:
        text = repr(rest.split(b"\0")[0][:_SHOWN_BYTES])[1:]
        yield Described(part, 8, len(rest), "name", text, _CONTROL)
