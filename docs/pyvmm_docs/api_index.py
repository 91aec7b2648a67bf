# SPDX-License-Identifier: Apache-2.0
"""Look-ups among the public names: by full name, by last part, through base classes."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from pyvmm_docs.api_model import Item, read_module
from pyvmm_docs.api_names import defined_name, documented_modules


@functools.cache
def find(full_name: str) -> Item | None:
    """Return the public item with a full name, exported or as defined; None if there is none."""
    parts = defined_name(full_name).split(".")
    for count in range(len(parts) - 1, 0, -1):
        items = _items_of(".".join(parts[:count]))
        if items is not None:
            return items.get(".".join(parts[count:]))
    return None


@functools.cache
def _items_of(module: str) -> dict[str, Item] | None:
    """Return the items of a module by name; None if there is no such module."""
    try:
        return {item.name: item for item in read_module(module).walk()}
    except ModuleNotFoundError:
        return None


def is_documented(full_name: str) -> bool:
    """Return whether the API reference has an entry for a module or object."""
    item = find(full_name)
    return (full_name if item is None else item.defined_in) in documented_modules()


@functools.cache
def documented_names() -> dict[str, list[str]]:
    """Return the full names of the documented objects of all modules by their last part."""
    names: dict[str, list[str]] = {}
    for module in sorted(documented_modules()):
        for item in read_module(module).items:
            names.setdefault(item.name, []).append(item.full_name)
    return names


def with_bases(cls: Item) -> Iterator[Item]:
    """Yield a class and those of its bases whose sources the project has."""
    yield cls
    for base in cls.bases:
        if item := find(base.partition("[")[0]):
            yield from with_bases(item)


def owner_of(item: Item) -> Item | None:
    """Return the class of which the item is a member, or None."""
    return find(item.full_name.rpartition(".")[0]) if "." in item.name else None


def overridden_by(item: Item) -> Item | None:
    """Return the documented member that `item` overrides or implements, if there is one.

    A class implements its bases and the Protocols that its docstring names.
    """
    owner, name = owner_of(item), item.name.rpartition(".")[2]
    if owner is None:
        return None
    named = (_protocol(word, owner) for word in re.findall(r"`(\w+)`", owner.doc))
    bases = [*with_bases(owner), *(each for each in named if each is not None)][1:]
    members = (find(f"{cls.full_name}.{name}") for cls in bases)
    return next((member for member in members if member is not None and member.doc), None)


def _protocol(name: str, user: Item) -> Item | None:
    """Return the Protocol that `name` means in the module of `user`."""
    full = read_module(user.defined_in).namespace.full_name(name) or name
    candidates = [full, *documented_names().get(name, [])]
    found = (find(each) for each in candidates)
    return next((each for each in found if each and "typing.Protocol" in each.bases), None)
