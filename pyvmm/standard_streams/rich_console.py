# SPDX-License-Identifier: Apache-2.0
"""Tables and coloured lines on a terminal, with text that others wrote in them.

rich takes `[...]` in a string as markup and passes escape sequences on. A `TextConsole` does
neither: a string is shown as it is, with `pyvmm.standard_streams.text` applied, wherever it is
(a cell, a title, a line). Style is given as `style=` or as a `rich.text.Text` of our own words.
"""

from __future__ import annotations

from typing import IO, Any

from rich.console import Console
from rich.text import Text

from pyvmm.standard_streams.text import printable_lines


class TextConsole(Console):
    """A rich console that prints strings literally, on standard output unless `file` is given."""

    def __init__(self, file: IO[str] | None = None) -> None:
        super().__init__(file=file, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return `text`, made printable, as rich's text object."""
        return super().render_str(printable_lines(text), **options)
