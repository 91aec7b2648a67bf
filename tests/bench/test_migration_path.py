# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the migration path: all memory arrives, over every link."""

from __future__ import annotations

import pytest

pytest.importorskip("bench")

from bench import migration_path
from bench.measure import Plan
from bench.path_cases import CHECKED, PYVMM, SOCKETS, STREAMS
from bench.targets import TARGETS
from bench.touched_ram import have_huge_pages
from pyvmm.errors import UserError
from pyvmm.progress.reporter import Silent


def test_every_link_is_measured_and_compared_for_each_target() -> None:
    cases = {case.name: case for case in migration_path.measure(Plan(True, Silent()))}
    assert len(cases) == (6 if have_huge_pages() else 3)
    assert all(set(case.rounds) == {PYVMM, STREAMS, CHECKED, SOCKETS} for case in cases.values())
    assert all(case.median(PYVMM) > 0 for case in cases.values())
    targets = [target for target in TARGETS if target.bench == "migration-path"]
    assert len(targets) == 4
    assert not have_huge_pages() or all(target.case in cases for target in targets)


def test_memory_that_does_not_arrive_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(migration_path, "checksum_of", lambda ram: -1)
    with pytest.raises(UserError, match="has not moved all memory over tcp"):
        migration_path.measure(Plan(True, Silent()))
