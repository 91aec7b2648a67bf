# SPDX-License-Identifier: Apache-2.0
"""The buffer of events when memory is short, tables are full, or other code runs in the middle."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from pyvmm_native.events import Batch, EventBuffer
from tests.native.test_native_events import Fields, read
from tests.native.test_native_serial import LSR, Console


def without_memory(call: Callable[[], Batch | None], after: int) -> Batch | None:
    """Return what `call` returns if no allocation succeeds but the first `after`."""
    # A module of CPython's tests, which not every distribution installs.
    _testcapi = pytest.importorskip("_testcapi")
    _testcapi.set_nomemory(after, 0)
    try:
        return call()
    finally:
        _testcapi.remove_mem_hooks()


def started() -> EventBuffer:
    buffer = EventBuffer()
    buffer.start()
    return buffer


def emit_ticks(buffer: EventBuffer, first: int, end: int) -> list[tuple[str, Fields]]:
    expected: list[tuple[str, Fields]] = []
    for value in range(first, end):
        fields: Fields = {"value": value, "text": f"text {value}"}
        buffer.event("tick", **fields)
        expected.append(("tick", fields))
    return expected


def test_no_event_is_lost_when_the_reader_has_no_memory() -> None:
    buffer = started()
    failed = 0
    for after in range(40):
        expected = emit_ticks(buffer, 0, 5)
        first = None
        try:
            first = without_memory(buffer.take, after)
        except MemoryError:
            failed += 1
        expected += emit_ticks(buffer, 5, 8)
        batches = [batch for batch in (first, buffer.take(), buffer.take()) if batch is not None]
        assert [event for batch in batches for event in read(batch)] == expected
        assert [batch.dropped for batch in batches] == [0, 0]
        assert batches[1].first_seq == batches[0].first_seq + 5
    assert 5 < failed < 40


def test_a_watch_that_ends_without_memory_can_begin_again() -> None:
    buffer = started()
    for after in range(3):
        expected = emit_ticks(buffer, 0, 5)
        with pytest.raises(MemoryError):
            without_memory(buffer.take, after)
        emit_ticks(buffer, 5, 8)
        batch = buffer.stop()
        assert batch is not None
        assert read(batch) == expected
        assert batch.dropped == 3
        buffer.start()
        emit_ticks(buffer, 0, 1)
        with pytest.raises(MemoryError):
            without_memory(buffer.stop, after)
        buffer.start()


def test_an_event_for_which_there_is_no_memory_is_counted() -> None:
    class Unprintable:
        def __str__(self) -> str:
            raise MemoryError

    buffer = started()
    buffer.event("tick", value=1)
    buffer.event("tick", value=Unprintable())  # type: ignore[arg-type]
    batch = buffer.take()
    assert read(batch) == [("tick", {"value": 1})]
    assert batch is not None
    assert batch.dropped == 1


def test_events_that_were_all_dropped_have_a_time() -> None:
    buffer = EventBuffer()
    buffer.start(10)
    before = time.monotonic_ns()
    buffer.event("tick", value=1)
    batch = buffer.take()
    assert batch is not None
    assert (batch.event_count, batch.dropped) == (0, 1)
    assert before <= batch.base_ns <= time.monotonic_ns()


def test_strings_of_the_guest_leave_room_for_the_names_of_queues_and_registers() -> None:
    buffer = started()
    for value in range(5000):
        buffer.event("bad_payload", why=f"length {value}")
        buffer.take()
    console = Console()
    console.fast_path.trace(buffer, "uart", "lsr", "thr")
    assert console.fast_path.read(LSR) == 0x60
    expected = {"table": "uart", "register": "lsr", "value": 0x60}
    assert read(buffer.take()) == [("register_read", expected)]


def test_kinds_that_are_added_at_once_keep_their_fields() -> None:
    buffer = started()

    def is_kind(name: str) -> bool:
        if name == "first":  # as if another thread emitted it now
            buffer.event("second", value=2, text="b")
        return False

    buffer.arm(is_kind, lambda seq, name, fields: None)
    buffer.event("first", text="a", value=1)
    buffer.event("second", value=3, text="c")
    assert read(buffer.take()) == [
        ("second", {"value": 2, "text": "b"}),
        ("first", {"text": "a", "value": 1}),
        ("second", {"value": 3, "text": "c"}),
    ]


def test_a_kind_that_is_added_while_step_is_armed_anew_stops_at_it() -> None:
    buffer = started()
    stops: list[str] = []

    def nothing(name: str) -> bool:
        if name == "late":  # as if another thread armed it now
            buffer.disarm()
            buffer.arm(lambda name: name == "late", lambda seq, name, fields: stops.append(name))
        return False

    buffer.arm(nothing, lambda seq, name, fields: None)
    buffer.event("late")
    assert stops == ["late"]


def test_step_does_not_stop_at_an_event_that_was_not_kept() -> None:
    buffer = started()
    stops: list[int] = []
    buffer.arm(lambda name: True, lambda seq, name, fields: stops.append(seq))

    class StopsWatching:
        def __str__(self) -> str:
            buffer.stop()
            return "text"

    buffer.event("tick", value=1)
    buffer.event("tick", value=StopsWatching())  # type: ignore[arg-type]
    assert stops == [0]
