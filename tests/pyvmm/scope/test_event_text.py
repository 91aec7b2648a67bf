# SPDX-License-Identifier: Apache-2.0
"""Events in words."""

from __future__ import annotations

from pyvmm.scope import event_text
from pyvmm.scope.event_text import EventText
from pyvmm.trace.kinds import KINDS
from pyvmm.trace.stream import events_of, make_event
from tests.scope.recordings import board_batches


def words(name: str, **fields: int | str) -> str:
    return event_text.event_text(make_event(0, 0, name, fields), 0).words


def test_the_events_of_an_inflate_are_in_words() -> None:
    lines = [
        event_text.event_text(event, 0) for batch in board_batches(1) for event in events_of(batch)
    ]
    of_inflate = [(line.kind, line.words) for line in lines if line.place == "balloon/inflate"]
    kinds = [kind for kind, _ in of_inflate]
    assert kinds.index("descriptor") < kinds.index("chain") < kinds.index("used")
    assert dict(of_inflate)["chain"] == "head 0: 1 descriptor, 128 B readable, 0 B writable"
    assert any(line[1:3] == ("balloon", "inflate") for line in lines)


def test_each_kind_with_words_has_the_fields_that_they_name() -> None:
    for kind in KINDS:
        if kind.name in event_text._WORDS:
            event_text._WORDS[kind.name](dict.fromkeys(kind.fields, 1))


def test_an_event_without_the_expected_fields_shows_those_it_has() -> None:
    assert words("balloon.chain", head=3, other="x") == "head=3 other=x"
    assert words("register_read", table="t", register="r", value="text") == (
        "table=t register=r value=text"
    )
    assert words("own.kind", value=16) == "value=0x10"


def test_the_columns_are_time_place_kind_and_words() -> None:
    event = make_event(
        7,
        1_500_000,
        "used",
        {
            "device": "rng",
            "queue": "request",
            "head": 3,
            "used_index": 9,
            "length": 64,
        },
    )
    assert event_text.event_text(event, 500_000) == EventText(
        "0.001000", "rng/request", "used", "head 3: 64 B written, at used index 9"
    )


def test_suppression_says_why() -> None:
    fields: dict[str, int | str] = {
        "device": "balloon",
        "queue": "inflate",
        "used_index": 4,
        "buffers": 1,
    }
    by_index: dict[str, int | str] = {**fields, "sent": 0, "why": "event index", "used_event": 9}
    assert words("used_notification", **by_index) == (
        "do not notify of 1 used buffer, by event index 9; used index 4"
    )
    by_flag: dict[str, int | str] = {**fields, "sent": 0, "why": "flag", "used_event": 0}
    assert "by flag;" in words("used_notification", **by_flag)
