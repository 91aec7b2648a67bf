# SPDX-License-Identifier: Apache-2.0
"""Tables of plain text, in columns as wide as they need to be, for terminals and for awk(1).

rich, which draws the other tables, fits them to the width of the terminal, and takes 23 ms to
import.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyvmm.standard_streams.text import print_line, printable

GAP = "  "


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> None:
    """Print `rows` below the names of `columns`, of which those in `right` are aligned right."""
    for line in table_lines(columns, rows, right):
        print_line(line)


def table_lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: str = ""
) -> list[str]:
    """Return the lines of `print_table`; text that others wrote is made printable."""
    cells = [list(columns), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    on_the_right = [column in right.split() for column in columns]
    return [
        GAP.join(
            cell.rjust(width) if rightwards else cell.ljust(width)
            for cell, width, rightwards in zip(row, widths, on_the_right, strict=True)
        ).rstrip()
        for row in cells
    ]
