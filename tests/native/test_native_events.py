# SPDX-License-Identifier: Apache-2.0
"""The buffer of events: what is taken is what was emitted, in order, and no more than fits."""

from __future__ import annotations

import os
import select
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm_native.event_decoder import EventError, decode
from pyvmm_native.events import Batch, EventBuffer
from tests.native.event_batches import changed

Fields = dict[str, int | str]
NUMBER_LIMIT = 1 << 64

names = st.sampled_from(["echo.status", "chain", "x"])
keys = st.sampled_from(["a", "b", "c", "d"])
numbers = st.integers(0, NUMBER_LIMIT - 1)
texts = st.text(max_size=90)
events = st.lists(st.tuples(names, st.dictionaries(keys, numbers | texts)), max_size=40)


def read(batch: Batch | None) -> list[tuple[str, Fields]]:
    if batch is None:
        return []
    kinds = {number: (name, fields) for number, name, fields in batch.kinds}
    return [
        (kinds[kind][0], dict(zip([name for name, _ in kinds[kind][1]], values, strict=True)))
        for _, kind, values in decode(batch)
    ]


def printable(fields: Fields) -> Fields:
    """Return what is kept of `fields`: text in UTF-8."""
    return {
        key: value if isinstance(value, int) else value.encode(errors="replace").decode()
        for key, value in fields.items()
    }


@given(events)
def test_events_taken_are_those_emitted(emitted: list[tuple[str, Fields]]) -> None:
    buffer = EventBuffer()
    buffer.start()
    before = time.monotonic_ns()
    for name, fields in emitted:
        buffer.event(name, **fields)
    after = time.monotonic_ns()
    batch = buffer.take()
    assert read(batch) == [(name, printable(fields)) for name, fields in emitted]
    if batch is not None:
        times = [ns for ns, _, _ in decode(batch)]
        assert times == sorted(times)
        assert before <= times[0] <= times[-1] <= after
    assert buffer.take() is None


def test_text_that_utf8_cannot_hold_is_replaced() -> None:
    buffer = EventBuffer()
    buffer.start()
    for name in ("a\udc80", "a\udc80" + 90 * "b"):
        buffer.event("why", text=name)
        assert read(buffer.take()) == [("why", {"text": name.replace("\udc80", "?")})]


@pytest.mark.parametrize("value", [-1, NUMBER_LIMIT, 1 << 100])
def test_a_number_beyond_64_bits_becomes_a_string(value: int) -> None:
    buffer = EventBuffer()
    buffer.start()
    buffer.event("big", value=value)
    assert read(buffer.take()) == [("big", {"value": str(value)})]


def test_events_are_kept_only_while_the_buffer_is_watched() -> None:
    buffer = EventBuffer()
    assert not buffer.watched
    buffer.event("early")
    assert buffer.take() is buffer.stop() is None
    buffer.start()
    assert buffer.watched
    buffer.event("seen")
    assert read(buffer.stop()) == [("seen", {})]
    buffer.event("late")
    buffer.start()
    assert buffer.take() is None
    with pytest.raises(RuntimeError, match="watched already"):
        buffer.start()


def test_events_that_do_not_fit_are_counted_and_have_sequence_numbers() -> None:
    buffer = EventBuffer()
    buffer.start(1000)
    for value in range(1000):
        buffer.event("tick", value=value)
    full = buffer.take()
    assert full is not None
    assert len(full.payload) <= 1000
    assert full.event_count + full.dropped == 1000
    assert [fields["value"] for _, fields in read(full)] == [*range(full.event_count)]
    buffer.event("tick", value=1000)
    after = buffer.take()
    assert after is not None
    assert (full.first_seq, after.first_seq, after.dropped) == (0, 1000, 0)


def test_the_reader_is_woken_when_half_of_the_room_is_used() -> None:
    buffer = EventBuffer()
    fd = buffer.start(1000)
    woken = select.poll()
    woken.register(fd, select.POLLIN)
    buffer.event("tick", value=1)
    assert woken.poll(0) == []
    for value in range(300):
        buffer.event("tick", value=value)
    assert woken.poll(0)
    assert os.eventfd_read(fd) == 1


def test_threads_emit_while_another_takes() -> None:
    buffer = EventBuffer()
    buffer.start()
    threads = [threading.Thread(target=emit, args=(buffer, i)) for i in range(4)]
    for thread in threads:
        thread.start()
    batches = []
    while any(thread.is_alive() for thread in threads):
        batches.append(buffer.take())
    batches.append(buffer.stop())
    taken = [batch for batch in batches if batch is not None]
    seen: dict[object, list[object]] = {}
    expected_seq = 0
    for batch in taken:
        assert batch.first_seq == expected_seq
        expected_seq += batch.event_count + batch.dropped
        for _, fields in read(batch):
            seen.setdefault(fields["thread"], []).append(fields["value"])
    assert seen == {i: [*range(2000)] for i in range(4)}


def emit(buffer: EventBuffer, number: int) -> None:
    for value in range(2000):
        buffer.event("tick", thread=number, value=value)


def test_the_table_of_strings_is_bounded() -> None:
    """A guest that makes up names fills the table of strings; further ones are in the events."""
    buffer = EventBuffer()
    buffer.start()
    for number in range(6000):
        buffer.event("why", text=f"reason {number}")
    buffer.event("why", text="x" * 10_000)
    batch = buffer.take()
    assert batch is not None
    assert len(batch.strings) < 4096
    *found, last = [fields["text"] for _, fields in read(batch)]
    assert found == [f"reason {number}" for number in range(6000)]
    assert last == "x" * 400


BATCH = Batch(0, 0, 1, 0, [(3, "k", (("a", "u"), ("b", "s")))], [(1, "one")], b"\x03\x00\x07\x01")


def test_a_batch_is_decoded() -> None:
    assert decode(BATCH) == [(0, 3, (7, "one"))]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"\x03\x00\x07", "cut short"),
        (b"\x03", "cut short"),
        (b"\x83", "cut short"),
        (b"\x04\x00\x07\x01", "kind 4 is not in the table"),
        (b"\x03\x00\x07\x02", "string 2 is not in the table"),
        (b"\x03\x00\x07\x00\x05abc", "a string is cut short"),
        (b"\x03\x00" + b"\xff" * 10 + b"\x01\x01", "more than 64 bits"),
        (b"", "0 events in a batch of 1"),
        (b"\x03\x00\x07\x01" * 2, "2 events in a batch of 1"),
    ],
)
def test_a_malformed_batch_is_refused(payload: bytes, reason: str) -> None:
    with pytest.raises(EventError, match=reason):
        decode(changed(BATCH, payload=payload))


@given(st.binary(max_size=200), st.integers(0, 1 << 64))
def test_any_bytes_are_decoded_or_refused(payload: bytes, base_ns: int) -> None:
    batch = changed(BATCH, payload=payload, base_ns=base_ns % NUMBER_LIMIT)
    try:
        found = decode(changed(batch, event_count=len(payload)))
    except EventError:
        return
    assert len(found) == len(payload) == 0
