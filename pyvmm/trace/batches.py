# SPDX-License-Identifier: Apache-2.0
"""Events put into batches, so that some events of a recording can be passed on as chunks.

`batches_of` is the counterpart of `pyvmm.trace.stream.events_of`; `pyvmm_native.events` describes
the layout of a batch. Numbers in a batch are consecutive, so those of the events are new ones. A
device is put into the name of its events, from which `make_event` takes it first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from pyvmm.trace.stream import TraceEvent
from pyvmm_native.events import Batch

MAX_BYTES = 512 << 10
"""Bytes of the tables and the payload of a batch, beyond which it takes no further event."""
_MAX_TABLE_STRING = 64
_MAX_TABLE_STRINGS = 4096

_Shape = tuple[str, tuple[tuple[str, str], ...]]


def batches_of(events: Iterable[TraceEvent], start_ns: int) -> Iterator[Batch]:
    """Yield batches of the events, numbered from 0; the base of the first is `start_ns`."""
    batch = _OpenBatch(0, start_ns)
    for event in events:
        batch.add(event)
        if batch.size_bytes >= MAX_BYTES:
            yield batch.close()
            batch = _OpenBatch(batch.end_seq, batch.last_ns)
    if batch.event_count:
        yield batch.close()


class _OpenBatch:
    """A batch that takes events; the first is number `first_seq`."""

    def __init__(self, first_seq: int, base_ns: int) -> None:
        self._first_seq = first_seq
        self._base_ns = self.last_ns = base_ns
        self._kinds: dict[_Shape, int] = {}
        self._strings: dict[str, int] = {}
        self._payload = bytearray()
        self._tables_bytes = 0
        self.event_count = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of the payload, and of the tables in their JSON."""
        return len(self._payload) + self._tables_bytes

    @property
    def end_seq(self) -> int:
        """The number after that of the last event."""
        return self._first_seq + self.event_count

    def close(self) -> Batch:
        """Return the batch."""
        kinds = [(number, *shape) for shape, number in self._kinds.items()]
        strings = [(number, text) for text, number in self._strings.items()]
        numbers = (self._first_seq, self._base_ns, self.event_count, 0)
        return Batch(*numbers, kinds, strings, bytes(self._payload))

    def add(self, event: TraceEvent) -> None:
        """Append `event`; one from before the last event gets the time of that."""
        fields = event.fields
        types = tuple((name, "s" if isinstance(fields[name], str) else "u") for name in fields)
        self._number(self._kind((_name(event), types)))
        self._number(max(event.time_ns - self.last_ns, 0))
        self.last_ns = max(event.time_ns, self.last_ns)
        for value in fields.values():
            if isinstance(value, str):
                self._text(value)
            else:
                self._number(value)
        self.event_count += 1

    def _kind(self, shape: _Shape) -> int:
        number = self._kinds.get(shape)
        if number is None:
            number = self._kinds[shape] = len(self._kinds)
            self._tables_bytes += len(json.dumps(shape))
        return number

    def _text(self, text: str) -> None:
        number = self._strings.get(text)
        if number is None and self._fits_table(text):
            number = self._strings[text] = len(self._strings) + 1
            self._tables_bytes += len(json.dumps(text))
        self._number(number or 0)
        if number is None:
            encoded = text.encode(errors="replace")
            self._number(len(encoded))
            self._payload += encoded

    def _fits_table(self, text: str) -> bool:
        return len(text) <= _MAX_TABLE_STRING and len(self._strings) < _MAX_TABLE_STRINGS

    def _number(self, value: int) -> None:
        """Append a LEB128 number."""
        while value >= 0x80:
            self._payload.append(value & 0x7F | 0x80)
            value >>= 7
        self._payload.append(value)


def _name(event: TraceEvent) -> str:
    """Return a name from which `make_event` finds the kind and the device of `event`."""
    in_fields = event.device in ("", "migration") or "." in event.kind
    return event.kind if in_fields else f"{event.device}.{event.kind}"
