# SPDX-License-Identifier: Apache-2.0
"""The glossary, whose tables of five columns become lists of definitions on the site.

`docs/reference/glossary.md` has a table for each area, because a table is easy to edit and to check
(`tests/project/test_words.py`), and is readable in the repository. A page of the site is too narrow
for five columns, so each such table is rewritten to Sphinx's `glossary` directive when the page is
read: a term can be linked to, as in {term}`host notifier`, and is found by the search.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sphinx.application import Sphinx

PAGE = "reference/glossary"
HEADINGS = ["Term", "Meaning", "Defined in", "In our code", "Formerly"]
_TABLE = re.compile(r"(?:^\|.*\|$\n?)+", re.MULTILINE)
_SPAN = re.compile(r"`([^`]+)`")


def with_definitions(text: str) -> str:
    """Return the source of the glossary with a list of definitions for each table of terms."""
    return _TABLE.sub(_rewritten, text)


def _rewritten(table: re.Match[str]) -> str:
    headings, _, *rows = [
        [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]
        for line in table[0].splitlines()
    ]
    if headings != HEADINGS:
        return table[0]
    lines = [line for row in rows for line in _definition(*row)]
    return "\n".join(["```{glossary}", *lines, "```", ""])


def _definition(term: str, meaning: str, defined: str, code: str, formerly: str) -> Iterator[str]:
    yield term
    yield f"    {meaning}"
    yield ""
    links = ", ".join(f"[`{path}`](../../{path})" for path in _SPAN.findall(code))
    notes = [f"**Code:** {links}"]
    if defined:
        notes.insert(0, f"**Defined in:** {defined}")
    if formerly:
        notes.append(f"**Formerly:** {formerly}")
    yield f"    {' · '.join(notes)}"
    yield ""


def _rewrite_source(app: Sphinx, name: str, source: list[str]) -> None:
    if name == PAGE:
        source[0] = with_definitions(source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension; it comes before the links to the repository are rewritten."""
    app.connect("source-read", _rewrite_source, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
