# SPDX-License-Identifier: Apache-2.0
"""Modules as MyST Markdown: directives of Sphinx's Python domain around the docstrings.

Docstrings are Markdown, as the pages are, but `2**52` is a number in them. A member without a
docstring refers to the member of a base class that it overrides.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from itertools import groupby

from pyvmm_docs.api_index import is_documented, overridden_by
from pyvmm_docs.api_model import Item, Module
from pyvmm_docs.api_tables import is_request, is_structure

MAX_VALUE_CHARACTERS = 60
"""Longer values of constants are not shown."""
MAX_LINE_CHARACTERS = 88
"""Longer signatures have one parameter on each line."""
IMPLIED_BASES = ("ctypes.Structure", "ctypes.Union", "object")


def module_markdown(module: Module) -> str:
    """Return the Markdown of a module, without a heading."""
    lines = [f"```{{py:module}} {module.name}", "```", "", prose(module.doc), ""]
    for layout, group in groupby(module.items, key=_table_of):
        if layout:
            lines += _tables(layout, list(group))
        else:
            lines += (line for item in group for line in _item(item, depth=0))
    return "\n".join(lines)


def prose(docstring: str) -> str:
    """Return a docstring as Markdown: a power, as in 2**52, does not begin strong emphasis."""
    lines = docstring.splitlines()
    return "\n".join(line if line.startswith("    ") else _escape(line) for line in lines)


def _escape(line: str) -> str:
    parts = re.split(r"(`[^`]*`)", line)
    return "".join(part if part.startswith("`") else part.replace("**", r"\*\*") for part in parts)


def _table_of(item: Item) -> str:
    """Return the directive for the table that contains the item, if one does."""
    if is_request(item):
        return "api-requests"
    is_group = item.kind == "data" and len(item.group) > 1
    return "api-constants" if is_group and not any(each.doc for each in item.group[:-1]) else ""


def _tables(directive: str, items: list[Item]) -> Iterator[str]:
    """Yield a table for each group of items, below its heading or its shared docstring."""
    for _, rows in groupby(items, key=lambda item: item.heading or id(item.group)):
        group = list(rows)
        names = " ".join(item.name for item in group)
        yield from (prose(group[0].heading or group[-1].doc), "")
        yield from (f"```{{{directive}}} {group[0].module} {names}", "```", "")


def _item(item: Item, depth: int) -> Iterator[str]:
    fence = ":" * (6 - depth)
    yield f"{fence}{{py:{_directive(item)}}} {_signature(item)}"
    for name, value in _options(item, depth):
        yield f":{name}: {value}".rstrip()
    yield ""
    if bases := [_shown(base) for base in item.bases if base not in IMPLIED_BASES]:
        yield from (f"Bases: {', '.join(f'`{base}`' for base in bases)}", "")
    if text := item.doc or item.heading:
        yield from (prose(text), "")
    elif overridden := overridden_by(item):
        yield from (f"See `{overridden.full_name}`.", "")
    if is_structure(item):
        yield from (f"```{{api-fields}} {item.full_name}", "```", "")
    for member in item.members:
        yield from _item(member, depth + 1)
    yield from (fence, "")


def _directive(item: Item) -> str:
    for kind in ("classmethod", "staticmethod"):
        if kind in item.modifiers:
            return kind
    return item.kind


def _signature(item: Item) -> str:
    name = item.name.rpartition(".")[2]
    if item.parameters is None:
        return name
    result = f" -> {item.type}" if item.type else ""
    return f"{name}({ast.unparse(item.parameters)}){result}"


def _options(item: Item, depth: int) -> Iterator[tuple[str, str]]:
    if depth == 0:
        yield "module", item.module
        if item.defined_in != item.module:
            yield "canonical", f"{item.defined_in}.{item.name}"
    if item.parameters is not None and _shown_length(_signature(item)) <= MAX_LINE_CHARACTERS:
        yield "single-line-parameter-list", ""
    if item.parameters is None and item.type:
        yield "type", json.dumps(item.type)
    if item.value and len(item.value) <= MAX_VALUE_CHARACTERS:
        yield "value", json.dumps(item.value)
    for flag in ("async", "abstractmethod", "final"):
        if flag in item.modifiers:
            yield flag, ""


def _shown_length(signature: str) -> int:
    """Return the length of a signature as the site shows it, with short names of types."""
    return len(re.sub(r"\b(?:\w+\.)+(?=\w)", "", signature))


def _shown(base: str) -> str:
    """Return a base class as the site shows it: by its short name where that is a link."""
    name = base.partition("[")[0]
    return name.rpartition(".")[2] if is_documented(name) else name
