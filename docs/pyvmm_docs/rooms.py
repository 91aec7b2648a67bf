# SPDX-License-Identifier: Apache-2.0
"""The directive `{rooms}`: the layers of a contract on imports, with the job of each package.

`{rooms} NAME` draws the import-linter contract called NAME in pyproject.toml, of type "layers": a
package may import those in the rows below its own, and none beside it. `lint-imports` checks the
same lines. The job of a package is the first line of its docstring. `__main__` is left out. The
drawing is HTML, not a picture, so that it wraps on narrow screens.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from pyvmm_docs.docstring import path_of, summary_of


class Room(NamedTuple):
    """A package or module of a layer."""

    name: str
    job: str
    path: str
    """Its folder or file in the repository."""


def layers(contract: str, repository: Path) -> list[list[Room]]:
    """Return the rows of the contract called `contract`, the highest first.

    Raises KeyError without such a contract, FileNotFoundError or ValueError for a package without
    source or docstring.
    """
    settings = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["importlinter"]
    found = {each["name"]: each for each in settings["contracts"] if each["type"] == "layers"}
    container = [f"{package}." for package in found[contract].get("containers", [""]) if package]
    prefix = container[0] if container else ""
    return [
        [_room(name.strip(), prefix, repository) for name in layer.split("|")]
        for layer in found[contract]["layers"]
        if layer != "__main__"
    ]


def _room(name: str, prefix: str, repository: Path) -> Room:
    path = path_of(prefix + name, repository)
    where = path.parent if path.name == "__init__.py" else path
    return Room(name, summary_of(prefix + name, repository), str(where.relative_to(repository)))


def draw(rows: list[list[Room]], repository_url: str) -> str:
    """Return the rows as HTML."""
    lines = ['<ol class="rooms">']
    for row in rows:
        lines += ["<li>", *_boxes(row, repository_url), "</li>"]
    return "\n".join([*lines, "</ol>"])


def _boxes(row: list[Room], repository_url: str) -> Iterator[str]:
    for room in row:
        kind = "blob" if room.path.endswith(".py") else "tree"
        yield (
            f'<a class="room" href="{repository_url}/{kind}/main/{room.path}">'
            f"<code>{escape(room.name)}</code><span>{_with_code(room.job)}</span></a>"
        )


def _with_code(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


class RoomsDirective(SphinxDirective):
    """Draws a contract; one that does not exist fails the build."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Return the drawing."""
        repository = Path(self.env.srcdir).parent
        self.env.note_dependency(str(repository / "pyproject.toml"))
        try:
            rows = layers(self.arguments[0], repository)
        except KeyError:
            raise self.error(f"no contract of layers is called {self.arguments[0]}") from None
        except (FileNotFoundError, ValueError) as error:
            raise self.error(str(error)) from None
        return [nodes.raw("", draw(rows, self.config.repository_url), format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("rooms", RoomsDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
