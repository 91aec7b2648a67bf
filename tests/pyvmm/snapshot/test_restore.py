# SPDX-License-Identifier: Apache-2.0
"""The steps of a restore, with a VM that records them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from devices.state import StateError
from pyvmm.errors import UserError
from pyvmm.memory.ram import Ram
from pyvmm.snapshot.errors import SnapshotIncompatible
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.restore import restore
from pyvmm.state.records import Record
from tests.pyvmm.snapshot.snapshot_files import KINDS, PARTS, RAM_BYTES, filled, same


class RestoringVm:
    """Satisfies `RestorableVm`; `lazy` is whether the host allows pages to be loaded on access."""

    def __init__(self, *, lazy: bool = False, why_unfit: str = "") -> None:
        self.ram = Ram(RAM_BYTES)
        self.steps: list[object] = []
        self._lazy = lazy
        self._why_unfit = why_unfit

    def load_lazily(self, snapshot: SnapshotFile) -> None:
        if not self._lazy:
            raise PermissionError
        self.steps.append("lazy")

    def restore_parts(self, records: Sequence[Record]) -> None:
        self.steps.append(list(records))
        if self._why_unfit:
            raise StateError("part", self._why_unfit)


@pytest.fixture
def opened(snapshot: Path) -> Iterator[SnapshotFile]:
    with SnapshotFile(snapshot, KINDS) as file:
        yield file


def test_pages_are_loaded_on_access_where_the_host_allows_it(opened: SnapshotFile) -> None:
    vm = RestoringVm(lazy=True)
    restore(opened, vm)
    assert vm.steps == ["lazy", PARTS]
    assert same(vm.ram, Ram(RAM_BYTES)), "nothing is loaded yet"


def test_elsewhere_all_pages_are_loaded_before_the_parts(opened: SnapshotFile) -> None:
    vm = RestoringVm()
    restore(opened, vm, vm.steps.append)
    assert vm.steps == [4, 1, 512, 1, PARTS]
    assert same(vm.ram, filled())


def test_a_part_that_does_not_fit_is_an_error_of_the_user(opened: SnapshotFile) -> None:
    with pytest.raises(SnapshotIncompatible, match="cannot be restored here: part: needs more"):
        restore(opened, RestoringVm(why_unfit="needs more"))
    assert issubclass(SnapshotIncompatible, UserError)
