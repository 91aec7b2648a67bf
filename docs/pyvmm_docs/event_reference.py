# SPDX-License-Identifier: Apache-2.0
"""The directive `{events}`: a table of the kinds of events in each theme of `pyvmm.trace.kinds`."""

from __future__ import annotations

from collections.abc import Iterator

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from pyvmm.trace.kinds import THEMES, EventKind


def markdown() -> str:
    """Return the reference of all kinds, a section for each theme."""
    return "\n".join(line for theme, kinds in THEMES.items() for line in _section(theme, kinds))


def _section(theme: str, kinds: tuple[EventKind, ...]) -> Iterator[str]:
    yield from (f"## {theme}", "", "| event | meaning | fields |", "| --- | --- | --- |")
    for kind in kinds:
        name = f"DEVICE.{kind.name}" if kind.of_device else kind.name
        fields = "<br>".join(f"`{field}`: {text}" for field, text in kind.fields.items())
        yield f"| `{name}` | {kind.meaning} *Emitted by {kind.emitted_by}.* | {fields} |"
    yield ""


class EventsDirective(SphinxDirective):
    """The reference of all kinds of events."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        return self.parse_text_to_nodes(markdown(), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("events", EventsDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
