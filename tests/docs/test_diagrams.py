# SPDX-License-Identifier: Apache-2.0
"""The directives for diagrams: parsing, placing, drawing, and layouts that are read from code."""

from __future__ import annotations

import struct
from xml.etree import ElementTree

import pytest

from pyvmm_docs import bit_layout, sequence
from pyvmm_docs.bit_layout import Field, LayoutError, Piece, Row, Style
from pyvmm_docs.sequence import Diagram, Divider, Message, Note, SequenceError

HEADER = struct.Struct("<H6x2I")


def two_fields() -> list[Field]:
    """Return a layout for `from_code`."""
    return [Field(0, 4, "num_pages"), Field(4, 4, "actual", "as in the code")]


def test_a_line_of_a_layout_is_a_field() -> None:
    lines = ["0 2 cmd: a *command*: any", "", " 0x8 * page bitmap", "4+2n 2 used_event"]
    assert bit_layout.parse(lines) == [
        Field(0, 2, "cmd", "a *command*: any"),
        Field(8, None, "page bitmap"),
        Field("4+2n", 2, "used_event"),
    ]


@pytest.mark.parametrize("line", ["cmd", "0 cmd", "0 two cmd", "0 2"])
def test_a_malformed_line_of_a_layout_is_refused(line: str) -> None:
    with pytest.raises(LayoutError, match="OFFSET WIDTH NAME"):
        bit_layout.parse([line])


def test_a_layout_of_a_struct_has_its_offsets_and_the_names_given() -> None:
    fields = bit_layout.from_code(f"{__name__}:HEADER", ["cmd: one", "reserved", "first", "last"])
    assert fields == [
        Field(0, 2, "cmd", "one"),
        Field(2, 6, "reserved"),
        Field(8, 4, "first"),
        Field(12, 4, "last"),
    ]


def test_a_layout_that_names_too_few_fields_of_a_struct_is_refused() -> None:
    with pytest.raises(LayoutError, match="has 4 fields, the diagram names 2"):
        bit_layout.from_code(f"{__name__}:HEADER", ["cmd", "reserved"])


def test_a_layout_of_a_function_takes_meanings_by_name() -> None:
    fields = bit_layout.from_code(f"{__name__}:two_fields", ["num_pages: the target"])
    assert fields == [
        Field(0, 4, "num_pages", "the target"),
        Field(4, 4, "actual", "as in the code"),
    ]
    with pytest.raises(LayoutError, match="has no field pages"):
        bit_layout.from_code(f"{__name__}:two_fields", ["pages: none"])


def test_fields_are_wrapped_into_rows_and_gaps_are_kept() -> None:
    fields = [Field(2, 2, "a"), Field(4, 8, "b"), Field(12, None, "c"), Field("n", 2, "d")]
    assert bit_layout.rows_of(fields, Style(8)) == [
        Row(0, [Piece(0, 2, ""), Piece(2, 2, "a"), Piece(4, 4, "b")]),
        Row(8, [Piece(0, 4, "b"), Piece(4, 4, "c", open_ended=True)]),
        Row("n", [Piece(0, 2, "d")]),
    ]


def test_a_register_has_all_of_its_bits() -> None:
    assert bit_layout.rows_of([Field(0, 1, "a")], Style(8, bits=True)) == [
        Row(0, [Piece(0, 1, "a"), Piece(1, 7, "")])
    ]


def test_stacked_fields_have_a_row_each() -> None:
    fields = [Field(0, 60, "a"), Field(4096, 1, "b")]
    assert bit_layout.rows_of(fields, Style(8, stacked=True)) == [
        Row(0, [Piece(0, 8, "a")]),
        Row(4096, [Piece(0, 8, "b")]),
    ]


@pytest.mark.parametrize("offsets", [(0, 1), (8, 0)])
def test_overlapping_and_disordered_fields_are_refused(offsets: tuple[int, int]) -> None:
    with pytest.raises(LayoutError, match=r"overlaps|out of order"):
        bit_layout.rows_of([Field(offset, 2, "x") for offset in offsets], Style(8))


@pytest.mark.parametrize("style", [Style(8), Style(4, hexadecimal=True), Style(8, bits=True)])
def test_the_drawing_of_a_layout_names_every_field(style: Style) -> None:
    fields = [Field(0, 1, "A_VERY_LONG_NAME"), Field(5, 3, "b & c"), Field("n", None, "d")]
    drawing = ElementTree.fromstring(bit_layout.draw(fields, style, "A title"))
    texts = [element.text for element in drawing.iter() if element.tag.endswith("text")]
    assert {field.name for field in fields} <= set(texts)
    assert "A title" in [element.text for element in drawing.iter()]


def test_a_layout_is_described_in_words() -> None:
    fields = [Field(0, 1, "A"), Field(16, 4, "b"), Field(20, None, "c")]
    assert bit_layout.describe(fields, Style(8, hexadecimal=True)) == (
        "Byte 0x0: A. Byte 0x10 to 0x13: b. Byte 0x14 and following: c."
    )


LINES = [
    "participants: Host, Device, Driver",
    "Host -> Driver: a target: 5",
    "Driver --> Device: notification",
    "Device -> Device: checks",
    "note Driver, Host: all agree",
    "== later ==",
]


def test_each_line_of_a_sequence_is_a_step() -> None:
    assert sequence.parse(LINES) == Diagram(
        ("Host", "Device", "Driver"),
        (
            Message(0, 2, "a target: 5", dashed=False),
            Message(2, 1, "notification", dashed=True),
            Message(1, 1, "checks", dashed=False),
            Note(0, 2, "all agree"),
            Divider("later"),
        ),
    )


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ([], "the first line"),
        (["A -> B: x"], "the first line"),
        (["participants: A, B", "A -> C: x"], "'C' is no participant"),
        (["participants: A, B", "note C: x"], "'C' is no participant"),
        (["participants: A, B", "A sends B x"], "neither"),
    ],
)
def test_a_malformed_sequence_is_refused(lines: list[str], fault: str) -> None:
    with pytest.raises(SequenceError, match=fault):
        sequence.parse(lines)


def test_the_drawing_of_a_sequence_shows_every_step_within_its_width() -> None:
    diagram = sequence.parse([*LINES, "Driver -> Driver: a label that is broken into many lines"])
    drawing = ElementTree.fromstring(sequence.draw(diagram, "A title"))
    (svg,) = (element for element in drawing if element.tag.endswith("svg"))
    texts = [element for element in svg.iter() if element.tag.endswith("text")]
    shown = " ".join(element.text or "" for element in texts)
    for step in (*diagram.participants, *(step.text for step in diagram.steps)):
        assert step in shown
    assert all(0 <= float(element.attrib["x"]) <= float(svg.attrib["width"]) for element in texts)


def test_the_lines_of_a_label_are_about_equally_long() -> None:
    assert sequence._wrapped(Note(0, 0, "discards all runs in one call")) == [
        "discards all",
        "runs in one call",
    ]
    assert sequence._wrapped(Note(0, 0, "x")) == ["x"]


def test_a_sequence_is_described_in_words() -> None:
    assert sequence.describe(sequence.parse(LINES)) == (
        "Host to Driver: a target: 5. Driver to Device: notification. Device: checks."
        " Note on Host and Driver: all agree. Then: later."
    )
