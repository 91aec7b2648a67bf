# SPDX-License-Identifier: Apache-2.0
"""Tables of the API reference: fields of ctypes structures, constants, and KVM's requests.

Offsets and sizes are those of the imported structures, request numbers those of `pykvm.ioctls`. A
structure or union that has no name in C is private in `pykvm`; its members are rows of the table of
the structure that contains it. Each row is a target of references and has an entry in the index.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from docutils import nodes
from sphinx.domains.python import PythonDomain
from sphinx.util.docutils import SphinxDirective

from pyvmm_docs.api_index import find
from pyvmm_docs.api_model import Item


class FieldRow(NamedTuple):
    """One field of a structure."""

    name: str
    """Dotted if the field lies in an unnamed structure or union."""
    type: str
    """Its C type."""
    offset: int
    """Bytes from the start of the structure."""
    size: int
    """Bytes."""


def is_structure(item: Item) -> bool:
    """Return whether the item is a ctypes structure or union."""
    return any(base in ("ctypes.Structure", "ctypes.Union") for base in item.bases)


def is_request(item: Item) -> bool:
    """Return whether the item is the number of an ioctl."""
    return item.value.startswith("_IO")


def value_of(item: Item) -> Any:
    """Return the object that `item` describes, a name of a module."""
    return getattr(importlib.import_module(item.defined_in), item.name)


def field_rows(structure: Any, prefix: str = "", base: int = 0) -> Iterator[FieldRow]:
    """Yield the fields of a structure, each followed by those of an unnamed structure in it."""
    for name, kind, *_ in structure._fields_:
        offset = base + getattr(structure, name).offset
        if name in getattr(structure, "_anonymous_", ()):
            yield from field_rows(kind, prefix, offset)
            continue
        yield FieldRow(prefix + name, c_type(kind), offset, ctypes.sizeof(kind))
        if _is_unnamed(kind):
            yield from field_rows(kind, f"{prefix}{name}.", offset)


def c_type(kind: Any) -> str:
    """Return the C type of a ctypes type, as the kernel's headers write it."""
    if issubclass(kind, ctypes.Array):
        return f"{c_type(kind._type_)}[{kind._length_ or ''}]"
    if kind in _scalar_types():
        return _scalar_types()[kind]
    if _is_unnamed(kind):
        return "union" if issubclass(kind, ctypes.Union) else "struct"
    return f"struct {kind.__name__}"


def _is_unnamed(kind: Any) -> bool:
    is_structure = issubclass(kind, ctypes.Structure | ctypes.Union)
    return is_structure and kind.__name__.startswith("_")


@functools.cache
def _scalar_types() -> dict[type, str]:
    signed = {getattr(ctypes, f"c_int{bits}"): f"__s{bits}" for bits in (8, 16, 32, 64)}
    unsigned = {getattr(ctypes, f"c_uint{bits}"): f"__u{bits}" for bits in (8, 16, 32, 64)}
    return signed | unsigned | {ctypes.c_char: "char", ctypes.c_void_p: "void *"}


class _Table(SphinxDirective):
    """A table with a row for each Python object, `NAME ...` of `MODULE`."""

    required_arguments = 2
    final_argument_whitespace = True
    head: tuple[str, ...]

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        module, names = self.arguments
        items = [find(f"{module}.{name}") for name in names.split()]
        return [self.table([self.row(item) for item in items if item is not None])]

    def row(self, item: Item) -> list[nodes.Node]:
        """Return the cells of the row of `item`: inline nodes or blocks of lines."""
        raise NotImplementedError

    def table(self, rows: list[list[nodes.Node]]) -> nodes.table:
        """Return the table of `rows`."""
        group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in self.head))
        group["cols"] = len(self.head)
        group += nodes.thead("", _row([nodes.Text(each) for each in self.head]))
        group += nodes.tbody("", *(_row(row) for row in rows))
        return nodes.table("", group, align="left")

    def target(self, text: str, full_name: str, kind: str, alias: str = "") -> nodes.literal:
        """Return `text` as the target of references to an object."""
        node = nodes.literal("", text, ids=[full_name])
        domain = self.env.get_domain("py")
        assert isinstance(domain, PythonDomain)
        domain.note_object(full_name, kind, full_name, location=node)
        if alias not in ("", full_name):
            domain.note_object(alias, kind, full_name, aliased=True, location=node)
        return node

    def constant(self, item: Item) -> nodes.literal:
        """Return the target of a constant."""
        alias = f"{item.defined_in}.{item.name}"
        return self.target(item.name, item.full_name, "data", alias)


def _row(cells: list[nodes.Node]) -> nodes.row:
    blocks = [
        each if isinstance(each, nodes.line_block) else nodes.paragraph("", "", each)
        for each in cells
    ]
    return nodes.row("", *(nodes.entry("", block) for block in blocks))


class ConstantsDirective(_Table):
    """Places a table of constants: `api-constants MODULE NAME ...`."""

    head = ("Name", "Value")

    def row(self, item: Item) -> list[nodes.Node]:
        """Return name and value."""
        return [self.constant(item), nodes.literal("", item.value)]


class RequestsDirective(_Table):
    """Places a table of ioctls: `api-requests MODULE NAME ...`."""

    head = ("Request and number", "Method and structure", "Section of api.rst")

    def row(self, item: Item) -> list[nodes.Node]:
        """Return name and number, the methods that make the request, and its documentation."""
        method = item.name.removeprefix("KVM_").lower()
        owners = [owner for owner in ("System", "Vm", "Vcpu") if find(f"pykvm.{owner}.{method}")]
        codes = [f"{owner}.{method}" for owner in owners] + re.findall(r"abi\.(\w+)", item.value)
        number = nodes.literal("", f"{value_of(item):#010x}")
        return [
            _lines(self.constant(item), number),
            _lines(*(nodes.literal("", code) for code in codes)),
            nodes.Text(item.doc.removeprefix("Section ").removesuffix(".")),
        ]


class FieldsDirective(_Table):
    """Places a table of the fields of a ctypes structure: `api-fields NAME`."""

    required_arguments = 1
    head = ("Field", "Type", "Offset", "Bytes")

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        item = find(self.arguments[0])
        assert item is not None
        structure = value_of(item)
        rows = [self._field(item, row) for row in field_rows(structure)]
        total = [nodes.Text("in all"), nodes.Text(""), nodes.Text("")]
        return [self.table([*rows, [*total, nodes.Text(str(ctypes.sizeof(structure)))]])]

    def _field(self, item: Item, row: FieldRow) -> list[nodes.Node]:
        name = self.target(row.name, f"{item.full_name}.{row.name}", "attribute")
        numbers = [nodes.Text(str(row.offset)), nodes.Text(str(row.size))]
        return [name, _type_cell(row.type), *numbers]


def _lines(*parts: nodes.Node) -> nodes.line_block:
    """Return inline nodes one below the other."""
    return nodes.line_block("", *(nodes.line("", "", part) for part in parts))


def _type_cell(c_type: str) -> nodes.Node:
    """Return a C type; the name of a structure in it is a literal of its own, to be linked."""
    match = re.fullmatch(r"struct (\w+)(.*)", c_type)
    if match is None:
        return nodes.literal("", c_type)
    return nodes.inline(
        "", "", nodes.Text("struct "), nodes.literal("", match[1]), nodes.Text(match[2])
    )
