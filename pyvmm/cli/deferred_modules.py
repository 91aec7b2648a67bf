# SPDX-License-Identifier: Apache-2.0
"""Modules that asyncio and logging import, and that the process of a guest hardly ever uses.

They describe Python code or tracebacks, or translate names of locales: for a debugger, or after an
error. `inspect` alone, with `ast` and `dis`, takes 1 MiB of memory for as long as the guest runs.
While `deferred_modules` is entered, each of them is a stand-in, which imports the real module when
one of its attributes is first used. Modules that were imported meanwhile keep the stand-in; an
import statement elsewhere finds the real module, as ever.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

DEFERRED = ("inspect", "linecache", "locale")


@contextmanager
def deferred_modules() -> Iterator[None]:
    """Let imports of `DEFERRED` find stand-ins, unless the modules are loaded already."""
    stand_ins = {name: _stand_in(name) for name in DEFERRED if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, module in stand_ins.items():
            _remove(name, module)


def _stand_in(name: str) -> ModuleType:
    module = ModuleType(name)

    def load(attribute: str) -> Any:
        _remove(name, module)
        return getattr(importlib.import_module(name), attribute)

    vars(module)["__getattr__"] = load
    return module


def _remove(name: str, stand_in: ModuleType) -> None:
    if sys.modules.get(name) is stand_in:
        del sys.modules[name]
