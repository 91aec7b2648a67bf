# SPDX-License-Identifier: Apache-2.0
"""The directive `{bit-layout}`: where the fields of a structure lie, as inline SVG and as a table.

The argument is the title; each line of the body is a field::

    0 2 cmd: the command of the request     offset, width, name, and optionally a meaning
    2 6 reserved
    8 * bitmap: one bit for each page       `*`: the width depends on a length
    4+2n 2 used_event                       an offset that is not a number starts a new row

Options: `unit` is `bytes` (default; offset 0 is on the left) or `bits` (bit 0 is on the right, as
in a register), `row` the number of units in a row. With `hex`, offsets are hexadecimal. With
`stacked`, each field is one row, whatever its width: a map. With `no-table`, only the drawing
appears.

With `from: MODULE:NAME` the layout is read from the code and cannot differ from it. The object is a
`struct.Struct`, whose fields the body names in order (`NAME: MEANING`), padding included; or a
function that returns a list of `Field`, for whose names the body may have meanings.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from pyvmm_docs import svg
from pyvmm_docs.named_object import named_object

_FIELD = re.compile(
    r"(?P<offset>\S+)\s+(?P<width>\d+|\*)\s+(?P<name>[^:]+?)(?::\s+(?P<meaning>.+))?"
)
_NAMED = re.compile(r"(?P<name>[^:]+?)(?::\s+(?P<meaning>.+))?")
_STRUCT_FIELD = re.compile(r"(\d*)([a-zA-Z])")

_DRAWING_PX = 640
_ROW_PX = 36
_RULER_PX = 18
_MARGIN_PX = 8


class LayoutError(ValueError):
    """A layout is malformed, or differs from the code that it is read from."""


class Field(NamedTuple):
    """One field; `offset` and `width` are in units of the diagram."""

    offset: int | str
    """A text if it depends on a length."""
    width: int | None
    """None if it depends on a length."""
    name: str
    meaning: str = ""


class Style(NamedTuple):
    """Options of a drawing."""

    row: int
    """Units in a row."""
    bits: bool = False
    """Units are bits, and bit 0 is on the right."""
    hexadecimal: bool = False
    stacked: bool = False
    """Each field is one row."""

    def number(self, value: int | str) -> str:
        """Return an offset as text."""
        return f"{value:#x}" if self.hexadecimal and isinstance(value, int) else str(value)


class Piece(NamedTuple):
    """The part of a field in one row; a gap between fields has no name."""

    column: int
    width: int
    name: str
    open_ended: bool = False


class Row(NamedTuple):
    """One row of a drawing."""

    label: int | str
    """Offset of the first unit."""
    pieces: list[Piece]


def parse(lines: list[str]) -> list[Field]:
    """Return the fields that `lines` describe. Raises LayoutError."""
    fields = []
    for line in _content(lines):
        match = _FIELD.fullmatch(line)
        if match is None:
            raise LayoutError(f"not `OFFSET WIDTH NAME: MEANING`: {line!r}")
        try:
            offset: int | str = int(match["offset"], 0)
        except ValueError:
            offset = match["offset"]
        width = None if match["width"] == "*" else int(match["width"])
        fields.append(Field(offset, width, match["name"].strip(), match["meaning"] or ""))
    return fields


def from_code(source: str, lines: list[str]) -> list[Field]:
    """Return the fields of the object `MODULE:NAME`, with names and meanings from `lines`.

    Raises ValueError if there is no such object, or if `lines` name other fields than it has.
    """
    found = named_object(source)
    named = [match for line in _content(lines) if (match := _NAMED.fullmatch(line))]
    if isinstance(found, struct.Struct):
        spans = struct_spans(found)
        if len(spans) != len(named):
            raise LayoutError(f"{source} has {len(spans)} fields, the diagram names {len(named)}")
        return [
            Field(*span, match["name"].strip(), match["meaning"] or "")
            for span, match in zip(spans, named, strict=True)
        ]
    fields: list[Field] = found()
    meanings = {match["name"].strip(): match["meaning"] or "" for match in named}
    if unknown := meanings.keys() - {field.name for field in fields}:
        raise LayoutError(f"{source} has no field {min(unknown)}")
    return [field._replace(meaning=meanings.get(field.name, field.meaning)) for field in fields]


def struct_spans(layout: struct.Struct) -> list[tuple[int, int]]:
    """Return (offset, width) in bytes of each field of a structure, padding included."""
    order, spans, end = layout.format[:1], [], 0
    if order not in "<>":
        raise LayoutError(f"the byte order of {layout.format!r} is not fixed")
    for count, code in _STRUCT_FIELD.findall(layout.format):
        once = code in "xs" or not count
        width = struct.calcsize(f"{order}{count}{code}" if once else f"{order}{code}")
        for _ in range(1 if once else int(count)):
            spans.append((end, width))
            end += width
    return spans


def _content(lines: list[str]) -> Iterator[str]:
    return (line.strip() for line in lines if line.strip())


def rows_of(fields: list[Field], style: Style) -> list[Row]:
    """Return the rows of a drawing, gaps between fields included. Raises LayoutError."""
    row_units = style.row
    if style.stacked:
        return [Row(field.offset, [Piece(0, row_units, field.name)]) for field in fields]
    rows: list[Row] = []
    for field in fields:
        if isinstance(field.offset, str):
            width = min(field.width or row_units, row_units)
            rows.append(Row(field.offset, [Piece(0, width, field.name, field.width is None)]))
            continue
        start, open_ended = field.offset, field.width is None
        end = start + (field.width or row_units - start % row_units)
        while start < end:
            width = min(end - start, row_units - start % row_units)
            _place(rows, start, Piece(start % row_units, width, field.name, open_ended))
            start += width
    return [_filled(row, row_units) for row in rows] if style.bits else rows


def _filled(row: Row, row_units: int) -> Row:
    """Return a row with a gap up to its end: a register has all of its bits."""
    end = row.pieces[-1].column + row.pieces[-1].width
    gap = [Piece(end, row_units - end, "")] if end < row_units else []
    return Row(row.label, row.pieces + gap)


def _place(rows: list[Row], offset: int, piece: Piece) -> None:
    """Append a piece to the row of `offset`, behind a gap if one is left."""
    label = offset - piece.column
    if not rows or rows[-1].label != label:
        if rows and isinstance(rows[-1].label, int) and rows[-1].label > label:
            raise LayoutError(f"{piece.name} is out of order")
        rows.append(Row(label, []))
    pieces = rows[-1].pieces
    end = pieces[-1].column + pieces[-1].width if pieces else 0
    if piece.column < end:
        raise LayoutError(f"{piece.name} overlaps the field before it")
    if piece.column > end:
        pieces.append(Piece(end, piece.column - end, ""))
    pieces.append(piece)


def describe(fields: list[Field], style: Style) -> str:
    """Return the fields as sentences, for readers who do not see the drawing."""
    unit = "Bit" if style.bits else "Byte"
    return " ".join(f"{unit} {_span(field, style)}: {field.name}." for field in fields)


def _span(field: Field, style: Style) -> str:
    """Return the units of a field as text, such as "4 to 7"."""
    first = style.number(field.offset)
    if field.width is None:
        return f"{first} and following"
    if field.width == 1 or isinstance(field.offset, str):
        return first
    return f"{first} to {style.number(field.offset + field.width - 1)}"


def draw(fields: list[Field], style: Style, title: str) -> str:
    """Return the layout as HTML."""
    rows = rows_of(fields, style)
    labels = [_row_label(row, style) for row in rows]
    left = _MARGIN_PX + max(svg.text_px(label, small=True) for label in labels) + 8
    unit_px = _DRAWING_PX / style.row
    y = float(_MARGIN_PX)
    parts: list[str] = []
    if not style.bits and not style.stacked:
        parts += [
            svg.text(left + (n + 0.5) * unit_px, y + 8, f"+{style.number(n)}", small=True)
            for n in range(0, style.row, -(-style.row // 16))
        ]
        y += _RULER_PX
    for row, label in zip(rows, labels, strict=True):
        if style.bits:
            parts += _bit_numbers(row, style, left, y)
            y += _RULER_PX
        height = max(_piece_px(piece, unit_px) for piece in row.pieces)
        parts.append(svg.text(left - 8, y + height / 2, label, anchor="end", small=True))
        for piece in row.pieces:
            column = style.row - piece.column - piece.width if style.bits else piece.column
            parts += _draw_piece(piece, left + column * unit_px, y, unit_px, height)
        y += height + (6 if style.bits else 0)
    width = left + _DRAWING_PX + _MARGIN_PX
    return svg.figure(parts, width, y + _MARGIN_PX, title, describe(fields, style))


def _row_label(row: Row, style: Style) -> str:
    if style.bits and isinstance(row.label, int):
        return f"bits {row.label + style.row - 1} to {row.label}"
    return style.number(row.label)


def _bit_numbers(row: Row, style: Style, left: float, y: float) -> list[str]:
    """Return the numbers of the outer bits of each field, above it."""
    unit_px = _DRAWING_PX / style.row
    first = row.label if isinstance(row.label, int) else 0
    bits = {bit for piece in row.pieces for bit in (piece.column, piece.column + piece.width - 1)}
    return [
        svg.text(left + (style.row - bit - 0.5) * unit_px, y + 9, str(first + bit), small=True)
        for bit in sorted(bits)
    ]


def _fits(piece: Piece, unit_px: float, *, small: bool) -> bool:
    return svg.text_px(piece.name, small=small) + 6 <= piece.width * unit_px


def _piece_px(piece: Piece, unit_px: float) -> float:
    """Return the height that a piece needs: more than a row's if its name must be turned."""
    if _fits(piece, unit_px, small=True):
        return _ROW_PX
    return max(_ROW_PX, svg.text_px(piece.name, small=True) + 10)


def _draw_piece(piece: Piece, x: float, y: float, unit_px: float, height: float) -> list[str]:
    width = piece.width * unit_px
    if not piece.name:
        return [svg.rectangle(x, y, width, height, opacity=0.0, dashed=True)]
    small = not _fits(piece, unit_px, small=False)
    turned = not _fits(piece, unit_px, small=True)
    reserved = piece.name.startswith("reserved")
    return [
        svg.rectangle(
            x, y, width, height, opacity=0.02 if reserved else 0.09, dashed=piece.open_ended
        ),
        svg.text(x + width / 2, y + height / 2, piece.name, small=small, turned=turned),
    ]


class BitLayoutDirective(SphinxDirective):
    """Draws a layout; a malformed one fails the build."""

    has_content = True
    required_arguments = 1
    final_argument_whitespace = True
    option_spec = {  # noqa: RUF012 (docutils' interface)
        "unit": lambda value: directives.choice(value, ("bytes", "bits")),
        "row": directives.positive_int,
        "hex": directives.flag,
        "stacked": directives.flag,
        "no-table": directives.flag,
        "from": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        """Return the drawing and the table of its fields."""
        bits = self.options.get("unit") == "bits"
        row = self.options.get("row", 32 if bits else 8)
        style = Style(row, bits, "hex" in self.options, "stacked" in self.options)
        lines, source = list(self.content), self.options.get("from")
        try:
            fields = from_code(source, lines) if source else parse(lines)
            drawing = draw(fields, style, self.arguments[0])
        except ValueError as error:
            raise self.error(str(error)) from None
        result: list[nodes.Node] = [nodes.raw("", drawing, format="html")]
        return result if "no-table" in self.options else [*result, *self._table(fields, style)]

    def _table(self, fields: list[Field], style: Style) -> list[nodes.Node]:
        """Return the table; meanings may contain markup."""
        columns = ["bits" if style.bits else "bytes", "field", "meaning"]
        rows = [
            [
                _span(field, style).replace(" ", "\N{NO-BREAK SPACE}"),
                f"`{field.name}`",
                field.meaning,
            ]
            for field in fields
        ]
        if not any(field.meaning for field in fields):
            columns, rows = columns[:2], [row[:2] for row in rows]
        lines = [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("bit-layout", BitLayoutDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
