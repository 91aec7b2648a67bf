# SPDX-License-Identifier: Apache-2.0
"""The directive `{locks}`: which thread takes which lock, and in which order, as inline SVG.

`{locks} MODULE` draws the two tables in the docstring of MODULE: the first names threads in its
first column; the second has a lock in each row, with the columns "taken while holding" and "taken
by". A lock comes in the table, and in the drawing, after all that may be held when it is taken.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from pyvmm_docs import svg
from pyvmm_docs.docstring import docstring_of, path_of

HOLDING, TAKEN_BY, NONE = "taken while holding", "taken by", "no lock"
COLUMN_PX, ROW_PX, TOP_PX, MARGIN_PX, NESTING_PX = 112, 30, 50, 10, 26
LABEL_CHARACTERS = 17


class Lock(NamedTuple):
    """A lock of the table."""

    name: str
    holding: frozenset[str]
    """The locks that may be held when it is taken."""
    threads: frozenset[str]


class LockError(ValueError):
    """The tables contradict each other or the order of the locks."""


def tables(text: str) -> list[list[list[str]]]:
    """Return the cells of each Markdown table in `text`, its headings first, without markup."""
    found = re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE)
    return [
        [
            [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
            for line in table.splitlines()
            if not line.startswith("| ---")
        ]
        for table in found
    ]


def read(text: str) -> tuple[list[str], list[Lock]]:
    """Return the threads and locks of the two tables in `text`. Raises LockError."""
    (_, *thread_rows), (headings, *lock_rows) = tables(text)
    threads = [row[0] for row in thread_rows]
    holding, taken_by = headings.index(HOLDING), headings.index(TAKEN_BY)
    locks: list[Lock] = []
    for row in lock_rows:
        lock = Lock(row[0].partition(",")[0], _names(row[holding]), _names(row[taken_by]))
        if not lock.holding <= {each.name for each in locks}:
            raise LockError(f"{lock.name} comes before a lock that may be held: {row[holding]}")
        if not lock.threads <= set(threads):
            raise LockError(f"{lock.name} is taken by a thread that is in no row: {row[taken_by]}")
        locks.append(lock)
    return threads, locks


def _names(cell: str) -> frozenset[str]:
    return frozenset(name.strip() for name in cell.split(",")) - {NONE}


def describe(threads: list[str], locks: list[Lock]) -> str:
    """Return the drawing in sentences."""
    sentences = []
    for lock in locks:
        takers = ", ".join(thread for thread in threads if thread in lock.threads)
        held = f", also while holding {', '.join(sorted(lock.holding))}" if lock.holding else ""
        sentences.append(f"{lock.name}: taken by {takers}{held}.")
    return " ".join(sentences)


def draw(threads: list[str], locks: list[Lock]) -> str:
    """Return a drawing with a row for each thread and a column for each lock."""
    left = MARGIN_PX + max(svg.text_px(name) for name in threads) + 12
    columns = [left + COLUMN_PX * (n + 0.5) for n in range(len(locks))]
    rows = [TOP_PX + ROW_PX * (n + 0.5) for n in range(len(threads))]
    right, bottom = left + COLUMN_PX * len(locks), TOP_PX + ROW_PX * len(threads)
    parts: list[str] = []
    for lock, x in zip(locks, columns, strict=True):
        parts += _heading(lock.name, x)
        parts.append(svg.line([(x, TOP_PX), (x, bottom)], faint=True))
    for thread, y in zip(threads, rows, strict=True):
        parts.append(svg.text(left - 12, y, thread, anchor="end"))
        parts.append(svg.line([(left, y), (right, y)], faint=True))
        parts += [
            f'<circle cx="{x:g}" cy="{y:g}" r="6"/>'
            for lock, x in zip(locks, columns, strict=True)
            if thread in lock.threads
        ]
    nesting, height = _nesting(locks, columns, bottom)
    title = "Locks that each thread takes; arrows lead to locks taken while holding another"
    description = describe(threads, locks)
    return svg.figure([*parts, *nesting], right + MARGIN_PX, height, title, description)


def _heading(name: str, x: float) -> list[str]:
    lines = textwrap.wrap(name, LABEL_CHARACTERS, break_long_words=False)
    first = TOP_PX - 6 - svg.LINE_PX * (len(lines) - 0.5)
    return [svg.text(x, first + n * svg.LINE_PX, each, small=True) for n, each in enumerate(lines)]


def _nesting(locks: list[Lock], columns: list[float], bottom: float) -> tuple[list[str], float]:
    """Return an arrow below the table for each nested lock, and the height of the drawing."""
    parts: list[str] = []
    y = bottom
    for number, lock in enumerate(locks):
        for outer, each in enumerate(locks):
            if each.name in lock.holding:
                y += NESTING_PX
                start, end = columns[outer], columns[number]
                parts.append(f'<circle cx="{start:g}" cy="{y:g}" r="3"/>')
                parts.append(svg.line([(start, y), (end - 8, y)]))
                parts.append(svg.arrow_head(end, y, 1))
    return parts, y + NESTING_PX


class LocksDirective(SphinxDirective):
    """Draws the tables; contradictions fail the build."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the drawing."""
        module, repository = self.arguments[0], Path(self.env.srcdir).parent
        try:
            threads, locks = read(docstring_of(module, repository))
        except (FileNotFoundError, ValueError) as error:
            raise self.error(str(error)) from None
        self.env.note_dependency(str(path_of(module, repository)))
        return [nodes.raw("", draw(threads, locks), format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("locks", LocksDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
