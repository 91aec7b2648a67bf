# SPDX-License-Identifier: Apache-2.0
"""The directive `{values}`: a table of numbers that the code defines, with their meanings.

The argument is `MODULE:NAME`, and the body has a line `NAME: MEANING` for each value::

    ```{values} devices.balloon.misc:MiscCommand
    GET_UNUSED_PAGES: report the pages on the free lists
    DROP_CACHE: drop clean caches
    SYNC: write out file systems
    ```

The object is an enumeration, all of whose members the body names; or a function that returns a list
of `Value`, for which the body may have meanings. Without `:NAME` it is a module, whose constants
the body picks. A name that the code does not have fails the build.
"""

from __future__ import annotations

from enum import Enum
from types import ModuleType
from typing import NamedTuple

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from pyvmm_docs.named_object import named_object


class Value(NamedTuple):
    """One row of a table."""

    value: int | float
    name: str
    meaning: str = ""


class ValuesError(ValueError):
    """The body and the code name different values."""


def values_of(source: str, meanings: dict[str, str]) -> list[Value]:
    """Return the values of `source` with `meanings`. Raises ValueError if it has others or none."""
    found = named_object(source)
    if isinstance(found, ModuleType):
        if missing := [each for each in meanings if not hasattr(found, each)]:
            raise ValuesError(f"{source} has no {missing[0]}")
        return [Value(getattr(found, each), each, meanings[each]) for each in meanings]
    if isinstance(found, type) and issubclass(found, Enum):
        values = [Value(member.value, member.name) for member in found]
        if missing := [each.name for each in values if each.name not in meanings]:
            raise ValuesError(f"{missing[0]} of {source} has no meaning")
    else:
        values = found()
    if unknown := meanings.keys() - {each.name for each in values}:
        raise ValuesError(f"{source} has no {min(unknown)}")
    return [each._replace(meaning=meanings.get(each.name, each.meaning)) for each in values]


class ValuesDirective(SphinxDirective):
    """Shows the table; `column` is the heading of the values."""

    has_content = True
    required_arguments = 1
    option_spec = {"column": directives.unchanged_required}  # noqa: RUF012 (docutils' interface)

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        lines = (line.strip() for line in self.content if line.strip())
        meanings = {name: text for name, _, text in (line.partition(": ") for line in lines)}
        try:
            values = values_of(self.arguments[0], meanings)
        except ValueError as error:
            raise self.error(str(error)) from None
        rows = [f"| {each.value:,} | `{each.name}` | {each.meaning} |" for each in values]
        head = [
            f"| {self.options.get('column', 'value')} | name | meaning |",
            "| ---: | --- | --- |",
        ]
        return self.parse_text_to_nodes("\n".join([*head, *rows]))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("values", ValuesDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
