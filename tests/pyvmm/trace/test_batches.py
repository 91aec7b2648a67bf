# SPDX-License-Identifier: Apache-2.0
"""Events that are put into batches again are the same events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.trace.batches import MAX_BYTES, batches_of
from pyvmm.trace.recording_format import decode_chunk, decode_chunk_header, encode_chunk
from pyvmm.trace.stream import TraceEvent, events_of, make_event

NAMES = ["tick", "balloon.status", "a.b.c", "migration.round", ".x", "x.", "migration.", ""]
NUMBERS = st.integers(0, 2**64 - 1)
TEXTS = st.sampled_from(["", "a", "a.b", "migration", "echo"]) | st.text(max_size=80)
FIELDS = st.dictionaries(
    st.sampled_from(["device", "table", "queue", "head", "why"]), NUMBERS | TEXTS, max_size=5
)


def again(events: list[TraceEvent], start_ns: int = 0) -> list[TraceEvent]:
    """Return the events after a way through chunks of a recording."""
    found: list[TraceEvent] = []
    for batch in batches_of(events, start_ns):
        chunk = encode_chunk(batch)
        header = decode_chunk_header(chunk)
        assert header is not None
        found += events_of(decode_chunk(header, chunk))
    return found


@given(st.lists(st.tuples(st.sampled_from(NAMES), FIELDS, st.integers(0, 10**12))))
def test_events_come_back_with_numbers_of_their_own(
    given_events: list[tuple[str, dict[str, int | str], int]],
) -> None:
    events, ns = [], 5
    for number, (name, fields, later_ns) in enumerate(given_events):
        ns += later_ns
        events.append(make_event(number * 3 + 1, ns, name, fields))
    assert again(events, 5) == [event._replace(seq=seq) for seq, event in enumerate(events)]


def test_an_event_out_of_order_gets_the_time_of_the_one_before() -> None:
    events = [make_event(0, 9, "tick", {}), make_event(1, 4, "tick", {})]
    assert [event.time_ns for event in again(events, 7)] == [9, 9]


@pytest.mark.parametrize("text", ["x" * 3000, "short"])
def test_batches_have_bounded_sizes(text: str) -> None:
    count = 3 * MAX_BYTES // 3000 if len(text) > 64 else 200_000
    fields: dict[str, int | str] = {"why": text}
    batches = list(batches_of((make_event(0, 0, "tick", fields) for _ in range(count)), 0))
    assert len(batches) > 1
    assert all(len(batch.payload) <= MAX_BYTES + 3100 for batch in batches)
    assert [batch.first_seq for batch in batches[1:]] == [
        batch.first_seq + batch.event_count for batch in batches[:-1]
    ]
    assert sum(batch.event_count for batch in batches) == count


def test_names_that_differ_do_not_fill_memory() -> None:
    """Each is in the tables of its batch, which are bounded, too."""
    events = (make_event(0, 0, f"kind {number}" * 100, {}) for number in range(2000))
    assert len(list(batches_of(events, 0))) > 2
