# SPDX-License-Identifier: Apache-2.0
"""The page on deadlines has every limit of the code, with its figure."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.migration.timeouts import Timeouts
from pyvmm.snapshot.timeouts import SnapshotTimeouts

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/deadlines.md"
ROW = re.compile(r"^\| [^|]+ \| ([\d.]+) \| `([\w.]+)` \| [^|]+ \|$", re.MULTILINE)
CONSTANT = re.compile(r"_?[A-Z_]*(TIMEOUT|TIME_LIMIT|GRACE_PERIOD|DIAGNOSIS)_S")
ELSEWHERE = {
    # The largest that a client may ask for.
    "pyvmm.qmp.guest_request_commands.MAX_TIMEOUT_S",
    "pyvmm.qmp.trace_commands.MAX_TIMEOUT_S",
}


def rows() -> list[tuple[str, str]]:
    """Return the figure and the name in the code of each row."""
    return ROW.findall(PAGE.read_text())


def constants() -> Iterator[str]:
    """Yield the full name of every limit that the code defines."""
    for path in sorted((ROOT / "pyvmm").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.parse(path.read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            for target in targets:
                if isinstance(target, ast.Name) and CONSTANT.fullmatch(target.id):
                    yield f"{module}.{target.id}"
    for kind in (Timeouts, SnapshotTimeouts):
        yield from (f"{kind.__module__}.{kind.__name__}.{name}" for name in kind.__annotations__)


@pytest.mark.parametrize(("figure", "name"), rows())
def test_a_figure_is_that_of_the_code(figure: str, name: str) -> None:
    module, _, attribute = name.rpartition(".")
    try:
        value = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError:
        module, _, kind = module.rpartition(".")
        value = getattr(getattr(importlib.import_module(module), kind), attribute)
    assert value == float(figure)


def test_every_limit_of_the_code_is_on_the_page() -> None:
    assert set(constants()) - ELSEWHERE - {name for _, name in rows()} == set()
