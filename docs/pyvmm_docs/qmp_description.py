# SPDX-License-Identifier: Apache-2.0
"""Descriptions of commands and events of the control socket, from their docstrings.

`parse` takes a docstring in the format of `pyvmm.qmp.command` apart. `key_paths` and
`documented_as` compare a returned value with the description of its members.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

SECTIONS = ("Arguments", "Returns", "Data", "Errors", "In QEMU")


class Description(NamedTuple):
    """A docstring in its parts."""

    text: str
    """Summary and further paragraphs."""
    sections: Mapping[str, Mapping[str, str]]
    """The meaning of each name, by section; a name with `?` is not always present."""
    in_qemu: str


def parse(docstring: str) -> Description:
    """Return the parts of a docstring. Raises ValueError for an unknown or malformed section."""
    text: list[str] = []
    sections: dict[str, list[str]] = {}
    lines = text
    for line in inspect.cleandoc(docstring).splitlines():
        if line.endswith(":") and line[:-1] in SECTIONS:
            lines = sections.setdefault(line[:-1], [])
        elif lines is not text and line and not line.startswith(" "):
            raise ValueError(f"not a section: {line!r}")
        else:
            lines.append(line)
    in_qemu = " ".join(line.strip() for line in sections.pop("In QEMU", []))
    return Description(
        "\n".join(text).strip(), {name: _meanings(each) for name, each in sections.items()}, in_qemu
    )


def _meanings(lines: list[str]) -> dict[str, str]:
    """Return the text of each name in a section; continuation lines are indented further."""
    meanings: dict[str, str] = {}
    name = ""
    for line in textwrap.dedent("\n".join(lines)).splitlines():
        if line.startswith(" "):
            meanings[name] += " " + line.strip()
        elif line:
            name, _, meaning = line.partition(": ")
            meanings[name] = meaning.strip()
    return meanings


def key_paths(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of each member in a returned value that is no object itself."""
    if isinstance(value, list):
        for element in value:
            if isinstance(element, dict):
                yield from key_paths(element, f"{prefix}[].")
    elif isinstance(value, dict):
        for name, member in value.items():
            if isinstance(member, dict) and member:
                yield from key_paths(member, f"{prefix}{name}.")
            elif isinstance(member, list) and any(isinstance(each, dict) for each in member):
                yield from key_paths(member, prefix + name)
            else:
                yield prefix + name, member


def documented_as(path: str, documented: Mapping[str, str]) -> str | None:
    """Return the name in a section that documents the member at `path`."""
    for name in documented:
        plain = name.removesuffix("?")
        if path == plain or (plain.endswith(".*") and path.startswith(plain[:-1])):
            return name
    return None


def member_fault(value: Any, documented: Mapping[str, str]) -> str | None:
    """Return how the members of a returned value differ from the documented ones, or None."""
    found = set()
    for path, _ in key_paths(value):
        name = documented_as(path, documented)
        if name is None:
            return f"{path} is not documented"
        found.add(name)
    missing = [name for name in documented if not name.endswith("?") and name not in found]
    return f"{missing[0]} is missing" if missing else None
