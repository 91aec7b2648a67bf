# SPDX-License-Identifier: Apache-2.0
"""The table of events names all events that the code emits, with their fields, and no others."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from pyvmm.trace.kinds import KINDS
from pyvmm_native.events import native_kinds
from tests.project.sources import files

Found = tuple[str, bool, frozenset[str]]
"""Name without that of a device, whether it had one, names of the fields."""


def emitted(tree: ast.AST) -> Iterator[Found]:
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        fields = {keyword.arg or "" for keyword in node.keywords} - {""}
        match node.func.attr, node.args[0]:
            case "event", ast.Constant(value=str(name)):
                if name.startswith("migration."):
                    yield name, False, frozenset(fields)
                else:
                    yield name.rpartition(".")[2], "." in name, frozenset(fields)
            case "event", ast.JoinedStr(values=[_, ast.Constant(value=str(name))]):
                yield name.removeprefix("."), True, frozenset(fields)
            case "_trace", ast.Constant(value=str(name)):
                yield name, True, frozenset(fields | {"count"})


def test_the_table_matches_the_code() -> None:
    found: set[Found] = set()
    for path in files("devices", "pyvmm", suffixes=(".py",)):
        if "testing" not in path.parts:
            found |= set(emitted(ast.parse(path.read_text())))
    for name, fields in native_kinds():
        found.add((name, False, frozenset(field for field, _ in fields)))
    # `bar_placed` and `bar_refused` share a call whose name is a variable; `dropped` is a reader's.
    where = frozenset({"gpa", "size_bytes"})
    found |= {("bar_placed", False, where), ("bar_refused", False, where)}
    found.add(("dropped", False, frozenset({"count"})))
    assert found == {(kind.name, kind.of_device, frozenset(kind.fields)) for kind in KINDS}


def test_every_kind_has_one_row() -> None:
    names = [kind.name for kind in KINDS]
    assert len(set(names)) == len(names)
    assert all(kind.meaning and all(kind.fields.values()) for kind in KINDS)
