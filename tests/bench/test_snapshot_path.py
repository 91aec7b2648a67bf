# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the snapshot path: all memory is saved and loaded, in every way."""

from __future__ import annotations

import pytest

pytest.importorskip("bench")

from bench import snapshot_path
from bench.measure import Plan
from bench.snapshot_path_cases import CHECKED, FILE, PYVMM
from bench.targets import TARGETS
from pyvmm.errors import UserError
from pyvmm.progress.reporter import Silent
from pyvmm_native.lazy_pages import LazyPages
from pyvmm_native.memory import GuestMemory


def have_userfaultfd() -> bool:
    try:
        LazyPages(GuestMemory([]), [], -1)
    except PermissionError:
        return False
    return True


def test_every_way_is_measured_and_compared_for_each_target() -> None:
    cases = {case.name: case for case in snapshot_path.measure(Plan(True, Silent()))}
    assert len(cases) == (6 if have_userfaultfd() else 4)
    assert all(set(case.rounds) == {PYVMM, CHECKED, FILE} for case in cases.values())
    assert all(case.median(PYVMM) > 0 for case in cases.values())
    targets = [target for target in TARGETS if target.bench == "snapshot-path"]
    assert len(targets) == 8
    assert not have_userfaultfd() or all(target.case in cases for target in targets)


def test_memory_that_is_not_loaded_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_path, "_load", lambda ram, path: None)
    with pytest.raises(UserError, match="pyvmm has not saved and loaded all memory"):
        snapshot_path.measure(Plan(True, Silent()))
