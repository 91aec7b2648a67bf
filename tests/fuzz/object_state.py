# SPDX-License-Identifier: Apache-2.0
"""Restore a board to its initial state, faster than a new one is built.

A fuzzer runs thousands of guests a second, and each needs a fresh device: a finding must come from
its own input alone. A board is a tree of a hundred register tables and takes longer to build than
an average guest to run. So `ObjectState` visits all objects that can be reached from the board
once and keeps a shallow copy of each attribute dictionary, slot, list, dictionary, set and deque;
`restore` puts the copies back. New state of a device type is covered without a change here. Native
objects (guest memory) are not restored.
"""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Iterator
from typing import Any

_CONTAINERS = (list, dict, set, deque)
_OURS = ("devices", "tests")


class ObjectState:
    """The state of all of our objects that can be reached from `root`, at construction."""

    def __init__(self, root: object) -> None:
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._lists: list[tuple[Any, Any]] = []
        self._others: list[tuple[Any, Any]] = []
        self._slots: list[tuple[object, str, object]] = []
        seen: dict[int, object] = {}
        waiting = [root]
        while waiting:
            found = waiting.pop()
            if id(found) not in seen:
                seen[id(found)] = found
                self._keep(found)
                waiting.extend(_referents(found))

    def _keep(self, found: object) -> None:
        if isinstance(found, dict):
            self._dicts.append((found, dict(found)))
        elif isinstance(found, list):
            self._lists.append((found, list(found)))
        elif isinstance(found, set | deque):
            self._others.append((found, found.copy()))
        elif _is_ours(found):
            if hasattr(found, "__dict__"):
                self._dicts.append((found.__dict__, dict(found.__dict__)))
            frozen = getattr(getattr(type(found), "__dataclass_params__", None), "frozen", False)
            for name in () if frozen else _slots_of(found):
                self._slots.append((found, name, getattr(found, name)))

    def restore(self) -> None:
        """Restore all objects."""
        for now, then in self._dicts:
            if now != then:
                now.clear()
                now.update(then)
        for now, then in self._lists:
            if now != then:
                now[:] = then
        for now, then in self._others:
            now.clear()
            now.update(then) if isinstance(now, set) else now.extend(then)
        for owner, name, value in self._slots:
            setattr(owner, name, value)


def _is_ours(found: object) -> bool:
    return type(found).__module__.split(".")[0] in _OURS and not isinstance(found, type)


def _slots_of(found: object) -> Iterator[str]:
    for each in type(found).__mro__:
        yield from (name for name in getattr(each, "__slots__", ()) if hasattr(found, name))


def _referents(found: object) -> Iterator[object]:
    """Yield the objects that `found` refers to."""
    if isinstance(found, dict):
        yield from found.values()
    elif isinstance(found, list | tuple | set | deque):
        yield from found
    elif isinstance(found, functools.partial):
        yield from (found.func, *found.args, *found.keywords.values())
    elif isinstance(found, types.MethodType):
        yield found.__self__
    elif isinstance(found, types.FunctionType):
        for cell in found.__closure__ or ():
            yield cell.cell_contents
        yield from found.__defaults__ or ()
    elif _is_ours(found):
        yield from getattr(found, "__dict__", {}).values()
        yield from (getattr(found, name) for name in _slots_of(found))
