# SPDX-License-Identifier: Apache-2.0
"""Compare numbers and structure layouts written in Python with those of the C headers.

A `Fact` is a C integer expression and the value that Python says it has. `structure_facts` turns
a ctypes structure into facts about every field, down through nested structures, and
`constant_facts` does it for the integers of a module. Headers that are newer than the Python code
may have further fields where the ABI has room for them: in place of padding, and at the end of a
structure that is a member of a union. `mismatches` prints all expressions from one
small C program, compiled against the installed headers, and returns the facts that are wrong.
Layouts that are not ctypes structures can be checked with facts written by hand.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

_SIGNED = (ctypes.c_int8, ctypes.c_int16, ctypes.c_int32, ctypes.c_int64)
_UNSIGNED = (ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64)


_PADDING = re.compile(r"(pad|padding|reserved)\d*")


class Fact(NamedTuple):
    """`expression`, in C, has the value `expected`, or a larger one if it `may_grow`."""

    expression: str
    expected: int
    may_grow: bool = False


def structures_of(*modules: ModuleType) -> list[type[ctypes.Structure]]:
    """Return the structures that the modules define, except those with a leading underscore."""
    return [
        value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, ctypes.Structure)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    ]


def structure_facts(
    structure: type[ctypes.Structure],
    c_type: str | None = None,
    *,
    newer: bool = False,
    in_union: bool = False,
) -> list[Fact]:
    """Return facts about the size of `structure` and about each of its fields.

    `c_type` is its C name, `struct` and the class's name unless given. If the headers are `newer`
    than Python's fields, padding may have become fields, and a structure that is a member of a
    union, as this one is if `in_union`, may have grown.
    """
    c_type = c_type or f"struct {structure.__name__}"
    size = Fact(f"sizeof({c_type})", ctypes.sizeof(structure), newer and in_union)
    return [size, *_field_facts(structure, c_type, "", 0, newer)]


def union_members(structures: Iterable[Any]) -> set[Any]:
    """Return the structures that are members of a union which `structures` contain."""
    unions = [kind for kind in reachable(structures) if issubclass(kind, ctypes.Union)]
    return {kind for union in unions for _, kind in union._fields_}


def _field_facts(
    aggregate: Any, c_type: str, prefix: str, base: int, newer: bool
) -> Iterator[Fact]:
    anonymous = getattr(aggregate, "_anonymous_", ())
    for name, kind in aggregate._fields_:
        if newer and _PADDING.fullmatch(name):
            continue
        offset = base + getattr(aggregate, name).offset
        if name in anonymous:
            yield from _field_facts(kind, c_type, prefix, offset, newer)
            continue
        path = prefix + name
        yield Fact(f"offsetof({c_type}, {path})", offset)
        may_grow = newer and issubclass(aggregate, ctypes.Union)
        yield from _kind_facts(kind, c_type, path, offset, newer, may_grow)


def _kind_facts(
    kind: Any, c_type: str, path: str, offset: int, newer: bool, may_grow: bool = False
) -> Iterator[Fact]:
    value = f"(({c_type} *)0)->{path}"
    if issubclass(kind, ctypes.Array):
        if kind._length_:  # a flexible array member has no size in C
            yield Fact(f"sizeof({value})", ctypes.sizeof(kind))
        yield from _kind_facts(kind._type_, c_type, f"{path}[0]", offset, newer)
        return
    is_aggregate = issubclass(kind, ctypes.Structure | ctypes.Union)
    yield Fact(f"sizeof({value})", ctypes.sizeof(kind), may_grow and is_aggregate)
    if is_aggregate:
        yield from _field_facts(kind, c_type, f"{path}.", offset, newer)
    elif issubclass(kind, _SIGNED + _UNSIGNED) and ctypes.sizeof(kind) > 1:
        # Bytes are left alone: C's char has a sign, which means nothing for raw bytes.
        yield Fact(f"(__typeof__({value}))-1 < 0", int(issubclass(kind, _SIGNED)))


def constant_facts(module: ModuleType, name_pattern: str = r"[A-Z][A-Z0-9_]*") -> list[Fact]:
    """Return a fact about each integer of `module` whose whole name matches `name_pattern`."""
    return [
        Fact(name, value)
        for name, value in vars(module).items()
        if isinstance(value, int) and re.fullmatch(name_pattern, name)
    ]


def implicit_padding(structure: type[ctypes.Structure]) -> list[str]:
    """Return the places where `structure` has bytes that no field names, as "after FIELD".

    A field that is missing in Python can hide in such a place from `structure_facts`.
    """
    places = []
    end, last = 0, ""
    for name, kind in structure._fields_:  # type: ignore[misc]
        if getattr(structure, name).offset != end:
            places.append(f"{structure.__name__} after {last}")
        end, last = getattr(structure, name).offset + ctypes.sizeof(kind), name
    if end != ctypes.sizeof(structure):
        places.append(f"{structure.__name__} after {last}")
    return places


def reachable(structures: Iterable[Any]) -> set[Any]:
    """Return the structures and unions themselves and all that their fields are made of."""
    found: set[Any] = set()
    pending = list(structures)
    while pending:
        kind = pending.pop()
        if issubclass(kind, ctypes.Array):
            pending.append(kind._type_)
        elif issubclass(kind, ctypes.Structure | ctypes.Union) and kind not in found:
            found.add(kind)
            pending += [field[1] for field in kind._fields_]
    return found


def mismatches(headers: Sequence[str], facts: Sequence[Fact]) -> list[str]:
    """Return a line for each wrong fact; `headers` as in "linux/kvm.h".

    Raises AssertionError with the compiler's output if an expression does not compile, as for a
    field or constant that the headers do not have.
    """
    values = evaluate(headers, [fact.expression for fact in facts])
    return [
        f"{fact.expression} is {value} in C, {fact.expected} in Python"
        for fact, value in zip(facts, values, strict=True)
        if value != fact.expected and not (fact.may_grow and value > fact.expected)
    ]


def evaluate(headers: Sequence[str], expressions: Sequence[str]) -> list[int]:
    """Return the values of C integer expressions, from one compiled program."""
    lines = [f"#include <{header}>" for header in ("stddef.h", "stdio.h", *headers)]
    lines.append("int main(void) {")
    lines += [f'printf("%lld\\n", (long long)({expression}));' for expression in expressions]
    lines.append("return 0; }")
    with tempfile.TemporaryDirectory() as directory:
        program = str(Path(directory) / "layout")
        compiler = subprocess.run(
            ["cc", "-x", "c", "-o", program, "-"],
            input="\n".join(lines),
            capture_output=True,
            text=True,
        )
        assert compiler.returncode == 0, compiler.stderr
        output = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return [int(line) for line in output.split()]
