# SPDX-License-Identifier: Apache-2.0
"""Events as their readers see them: batches of a buffer, decoded.

`events_of` decodes a `Batch`. The device and the queue that an event belongs to are found by the
rules of `pyvmm.trace.kinds`, so they work for any device: the device is the field of that name, or
the part before the dot of the event's name or of its register table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pyvmm_native.event_decoder import decode
from pyvmm_native.events import Batch


class TraceEvent(NamedTuple):
    """One event of a machine."""

    seq: int
    """Number in the stream; a gap means that events are missing."""
    time_ns: int
    """CLOCK_MONOTONIC of the host."""
    kind: str
    """A name of `pyvmm.trace.kinds`, or a device's own."""
    device: str
    """The device it belongs to; "" if none."""
    queue: str
    """The queue it belongs to; "" if none."""
    fields: dict[str, int | str]
    """All fields, by name."""


def events_of(batch: Batch) -> Iterator[TraceEvent]:
    """Yield the events of a batch in order, then one of kind `dropped` if some were lost.

    Raises `EventError` for a batch that is malformed.
    """
    kinds = {
        number: (name, tuple(field for field, _ in fields)) for number, name, fields in batch.kinds
    }
    seq, ns = batch.first_seq, batch.base_ns
    for ns, number, values in decode(batch):
        name, fields = kinds[number]
        yield make_event(seq, ns, name, dict(zip(fields, values, strict=True)))
        seq += 1
    if batch.dropped:
        yield TraceEvent(seq, ns, "dropped", "", "", {"count": batch.dropped})


def make_event(seq: int, time_ns: int, name: str, fields: dict[str, int | str]) -> TraceEvent:
    """Return the event called `name`, with its device and queue."""
    before, _, kind = name.rpartition(".")
    if before == "migration":
        before, kind = "", name
    table = str(fields.get("table", ""))
    device = before or str(fields.get("device", "")) or table.partition(".")[0]
    queue = fields.get("queue", "")
    return TraceEvent(seq, time_ns, kind, device, str(queue), fields)
