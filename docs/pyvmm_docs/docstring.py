# SPDX-License-Identifier: Apache-2.0
"""The directive `{docstring}`: the docstring of a module as part of a page.

The modules open with a paragraph on how they work, and some with a table. A page that needs that
text shows it from the source instead of repeating it: `{docstring} pyvmm.machine.threads`. The
option `after` skips everything up to and including the given text, `before` ends where the given
text begins. The module is read, not imported.
"""

from __future__ import annotations

import ast
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

SOURCES = (".", "cython_src", "docs")
"""Folders of the repository that packages are in."""


def path_of(module: str, repository: Path) -> Path:
    """Return the source file of `module`, a package's `__init__.py` included.

    Raises FileNotFoundError.
    """
    for source in SOURCES:
        path = repository / source / module.replace(".", "/")
        for candidate in (path.with_suffix(".py"), path / "__init__.py", path.with_suffix(".pyx")):
            if candidate.is_file():
                return candidate
    raise FileNotFoundError(f"no module {module}")


def docstring_of(module: str, repository: Path) -> str:
    """Return the docstring of `module`. Raises FileNotFoundError, or ValueError without one."""
    path = path_of(module, repository)
    source = path.read_text()
    if path.suffix == ".pyx":  # only its head is Python
        source = source[: source.index('"""', source.index('"""') + 3) + 3]
    docstring = ast.get_docstring(ast.parse(source))
    if docstring is None:
        raise ValueError(f"{module} has no docstring")
    return docstring


def summary_of(module: str, repository: Path) -> str:
    """Return the first line of the docstring of `module`, without its full stop."""
    return docstring_of(module, repository).partition("\n")[0].rstrip(".")


def part(text: str, after: str = "", before: str = "") -> str:
    """Return `text` without what precedes the end of `after` and what follows `before`.

    Raises ValueError if it does not contain them.
    """
    for each in (after, before):
        if each not in text:
            raise ValueError(f"not found in the docstring: {each!r}")
    start = text.index(after) + len(after)
    return text[start : text.index(before, start) if before else None].strip("\n")


class DocstringDirective(SphinxDirective):
    """Shows the docstring; a module or a text that does not exist fails the build."""

    required_arguments = 1
    option_spec = {"after": directives.unchanged, "before": directives.unchanged}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        """Return the parsed docstring."""
        module, repository = self.arguments[0], Path(self.env.srcdir).parent
        try:
            text = part(docstring_of(module, repository), **self.options)
        except (FileNotFoundError, ValueError) as error:
            raise self.error(str(error)) from None
        path = path_of(module, repository)
        self.env.note_dependency(str(path))
        container = nodes.container()
        self.state.nested_parse(StringList(text.splitlines(), str(path)), 0, container)
        return list[nodes.Node](container.children)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("docstring", DocstringDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
