# SPDX-License-Identifier: Apache-2.0
"""The drawings of the architecture say what the contracts and docstrings say."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from pyvmm.machine import threads
from pyvmm_docs import locks, rooms
from pyvmm_docs.docstring import docstring_of, part, summary_of
from tests.project.sources import ROOT

PACKAGES = "One direction: pyvmm -> devices | pykvm -> pyvmm_native"
ROOMS = "One direction between the rooms of pyvmm"
TABLES = """
| thread | runs |
| --- | --- |
| loop | queues |
| vCPU | the guest |

| lock | taken while holding | taken by |
| --- | --- | --- |
| `big` lock, `Big.lock` | no lock | loop, vCPU |
| small lock | {holding} | {takers} |
"""


def test_a_docstring_is_read_from_a_module_a_package_or_a_native_module() -> None:
    assert docstring_of("pyvmm.machine.threads", ROOT) == ast.get_docstring(
        ast.parse((ROOT / "pyvmm/machine/threads.py").read_text())
    )
    assert docstring_of("pyvmm_native.ring", ROOT)
    assert summary_of("devices.rng", ROOT).startswith("The entropy device")
    with pytest.raises(FileNotFoundError, match=r"pyvmm\.missing"):
        docstring_of("pyvmm.missing", ROOT)


def test_a_module_without_a_docstring_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "silent.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="silent has no docstring"):
        docstring_of("silent", tmp_path)


def test_part_of_a_docstring_lies_between_the_given_texts() -> None:
    assert part("a. b.\nc. d.", after="a.", before=" d.") == " b.\nc."
    assert part("a. b.") == "a. b."
    with pytest.raises(ValueError, match="not found"):
        part("a. b.", after="z")


def test_the_rooms_are_those_of_the_contract_and_of_the_tree() -> None:
    drawn = {room.name: room for row in rooms.layers(ROOMS, ROOT) for room in row}
    packages = {path.parent.name for path in (ROOT / "pyvmm").glob("*/__init__.py")}
    assert packages <= drawn.keys()
    assert drawn["vm"].path == "pyvmm/vm.py"
    assert drawn["memory"].path == "pyvmm/memory"
    assert all(room.job for room in drawn.values())
    with pytest.raises(KeyError):
        rooms.layers("no such contract", ROOT)


def test_rows_of_rooms_are_in_the_order_of_the_contract() -> None:
    rows = [[room.name for room in row] for row in rooms.layers(PACKAGES, ROOT)]
    assert rows == [["bench"], ["pyvmm"], ["devices", "pykvm"], ["pyvmm_native"]]
    html = rooms.draw(rooms.layers(PACKAGES, ROOT), "https://example.org")
    assert html.index("<code>pyvmm</code>") < html.index("<code>devices</code>")
    assert 'href="https://example.org/tree/main/cython_src/pyvmm_native"' in html


def test_the_drawing_of_the_locks_has_every_thread_and_lock_of_the_tables() -> None:
    names, found = locks.read(threads.__doc__ or "")
    assert {"event loop", "vCPU", "migration"} <= set(names)
    svg = locks.draw(names, found)
    assert svg.count('r="6"') == sum(len(lock.threads) for lock in found)
    assert svg.count("<polygon") == sum(len(lock.holding) for lock in found)


@pytest.mark.parametrize(
    ("holding", "takers", "error"),
    [
        ("small lock", "loop", "before a lock that may be held"),
        ("no lock", "loop, ghost", "in no row"),
    ],
)
def test_a_table_of_locks_that_contradicts_itself_is_an_error(
    holding: str, takers: str, error: str
) -> None:
    with pytest.raises(locks.LockError, match=error):
        locks.read(TABLES.format(holding=holding, takers=takers))


def test_a_lock_taken_while_holding_another_gets_an_arrow() -> None:
    names, found = locks.read(TABLES.format(holding="big lock", takers="vCPU"))
    assert found[0].name == "big lock"
    assert found[1].holding == {"big lock"}
    assert locks.describe(names, found) == (
        "big lock: taken by loop, vCPU. small lock: taken by vCPU, also while holding big lock."
    )
