# SPDX-License-Identifier: Apache-2.0
"""The ES modules of the page as one script.

A browser loads no module for a page from `file://`, so the modules have to be in the page. Each
becomes the body of a function that returns its exports, after those that it imports:

    const modules = {};
    modules.lanes = await (async () => {
    const { placeOf } = modules.describe;
    class Lanes { ... }
    return { Lanes };
    })();

That is all: names stay, and so do the lines of a module. The page's modules use the forms of
`import` and `export` that are known here, at the beginning of a line; any other is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_IMPORT = re.compile(
    r'import (?:\* as (?P<all>\w+)|(?P<some>\{ \w+(?:, \w+)* \})) from "\./(?P<module>\w+)\.js";'
)
_EXPORT = re.compile(r"export (?P<rest>(?:async )?(?:function|class|const) (?P<name>\w+)\b.*)")


class BundleError(ValueError):
    """A module that cannot be put into the bundle; the message says why."""


def bundle(main: str, read: Callable[[str], str]) -> str:
    """Return the module `main` and all that it imports as the text of one module.

    `read` returns the text of the module of a name, without `.js`. Raises `BundleError`.
    """
    parts = ["const modules = {};"]
    exports: dict[str, list[str] | None] = {}  # None while a module is being added

    def add(name: str) -> None:
        exports[name] = None
        module = _Module(name, read(name))
        for imported, names in module.imports:
            if imported not in exports:
                add(imported)
            known = exports[imported]
            if known is None:
                raise BundleError(f"{name}.js and {imported}.js import each other")
            if missing := set(names).difference(known):
                raise BundleError(f"{name}.js imports {', '.join(missing)} of {imported}.js")
        exports[name] = module.exports
        parts.append(module.as_function())

    add(main)
    return "\n".join(parts) + "\n"


class _Module:
    """A module: its lines as the body of a function, its imports and its exports."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self.imports: list[tuple[str, list[str]]] = []
        """Modules, each with the names that are imported one by one."""
        self.exports: list[str] = []
        self._lines = [self._line(line) for line in text.split("\n")]

    def as_function(self) -> str:
        """Return the module as an assignment to its place in `modules`."""
        body = "\n".join(self._lines)
        names = ", ".join(self.exports)
        return (
            f"modules.{self._name} = await (async () => {{\n{body}\nreturn {{ {names} }};\n}})();"
        )

    def _line(self, line: str) -> str:
        if found := _IMPORT.fullmatch(line):
            names = re.findall(r"\w+", found["some"] or "")
            self.imports.append((found["module"], names))
            return f"const {found['all'] or found['some']} = modules.{found['module']};"
        if found := _EXPORT.fullmatch(line):
            self.exports.append(found["name"])
            return found["rest"]
        if re.match(r"import\b|export\b", line):
            raise BundleError(
                f"{self._name}.js has a form of import or export that is not known: {line}"
            )
        return line
