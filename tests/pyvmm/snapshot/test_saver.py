# SPDX-License-Identifier: Apache-2.0
"""The steps of a snapshot: when they are refused, their order, and the length of the pause."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pyvmm.memory.precopy import ChunkSink, PreCopy, UnusedPages
from pyvmm.snapshot import saver, writer
from pyvmm.snapshot.saver import MigrationActive, SnapshotRequest, Snapshots, SnapshotStatus
from pyvmm.state.records import Record
from pyvmm.units import MIB
from pyvmm_native.page_blocks import store_block
from pyvmm_native.runs import PageRuns
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm

PAUSE_S = 0.05


class RecordingMachine(InMemoryVm):
    """Records its calls in order; saving its parts takes `PAUSE_S`."""

    def __init__(self) -> None:
        super().__init__(64 * MIB)
        self.calls: list[str] = []

    def prepare_parts(self) -> None:
        self.calls.append("prepare")

    def pause(self) -> None:
        self.calls.append("pause")
        super().pause()

    @contextmanager
    def quiescent(self) -> Iterator[None]:
        with super().quiescent():
            self.calls.append("devices stop")
            yield
            self.calls.append("devices continue")

    def save_parts(self) -> Sequence[Record]:
        self.calls.append("save")
        time.sleep(PAUSE_S)
        return super().save_parts()

    def resume(self) -> None:
        self.calls.append("resume")
        super().resume()


def take_snapshot(machine: InMemoryVm, request: SnapshotRequest) -> SnapshotStatus:
    async def main() -> SnapshotStatus:
        machine.snapshots.start(request)
        async with asyncio.timeout(20):
            while machine.snapshots.active:
                await asyncio.sleep(0.001)
        return machine.snapshots.status

    return asyncio.run(main())


def test_state_is_prepared_before_the_guest_is_paused(tmp_path: Path) -> None:
    machine = RecordingMachine()
    status = take_snapshot(machine, SnapshotRequest(tmp_path / "s"))
    assert status.status == "completed", status.error
    assert machine.calls == [
        *("prepare", "pause", "devices stop"),
        *("save", "devices continue", "resume"),
    ]


def test_stopped_seconds_are_those_for_which_the_guest_is_paused(tmp_path: Path) -> None:
    begin = time.monotonic()
    status = take_snapshot(RecordingMachine(), SnapshotRequest(tmp_path / "s"))
    assert PAUSE_S <= status.stopped_seconds <= status.seconds <= time.monotonic() - begin


def test_a_short_round_is_the_last_one_before_the_guest_is_paused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, copy = RecordingMachine(), PreCopy.copy
    rounds: list[tuple[str, bool]] = []

    def observed(precopy: PreCopy, sink: ChunkSink, *, last: bool = False) -> None:
        rounds.append((machine.status, last))
        copy(precopy, sink, last=last)

    monkeypatch.setattr(PreCopy, "copy", observed)
    monkeypatch.setattr(saver, "SHORT_ROUND_S", 60.0)
    take_snapshot(machine, SnapshotRequest(tmp_path / "s"))
    assert rounds == [("running", False), ("paused", True)]


@pytest.mark.parametrize("keep_running", [True, False])
def test_a_guest_that_is_to_continue_does_not_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_running: bool
) -> None:
    class ChangedMachine(RecordingMachine):
        def pause(self) -> None:
            self.written = PageRuns([(5, 1)])
            super().pause()

    stored: set[tuple[str, bool]] = set()

    def observed(*args: Any, write_behind: bool) -> int:
        stored.add((machine.status, write_behind))
        return store_block(*args, write_behind=write_behind)

    machine = ChangedMachine()
    machine.ram.memory.write(5 << 12, b"x")
    monkeypatch.setattr(writer, "store_block", observed)
    take_snapshot(machine, SnapshotRequest(tmp_path / "s", keep_running=keep_running))
    assert stored == (
        {("running", True), ("paused", False)} if keep_running else {("paused", True)}
    )


def test_a_guest_that_ends_while_it_is_copied_is_not_saved(tmp_path: Path) -> None:
    class EndingGuest(RecordingMachine):
        async def unused_pages(self, timeout_s: float) -> UnusedPages:
            self.status = "shutdown"
            return await super().unused_pages(timeout_s)

    machine = EndingGuest()
    status = take_snapshot(machine, SnapshotRequest(tmp_path / "s", keep_running=False))
    assert status == SnapshotStatus("failed", error="the guest has ended")
    assert machine.calls == ["prepare"]
    assert not list(tmp_path.iterdir())


def test_progress_counts_the_pages_copied_and_those_to_copy(tmp_path: Path) -> None:
    class ObservedMachine(RecordingMachine):
        before_save = SnapshotStatus()

        def save_parts(self) -> Sequence[Record]:
            self.before_save = self.snapshots.status
            return super().save_parts()

    machine = ObservedMachine()
    machine.ram.memory.write(5 << 12, b"x" * (3 << 12))
    status = take_snapshot(machine, SnapshotRequest(tmp_path / "s", ask_unused=False))
    before = machine.before_save
    assert (before.status, before.completed_pages) == ("active", before.total_pages)
    assert before.total_pages >= 3
    assert status.report is not None
    assert status.completed_pages == status.total_pages == status.report.stored


def test_a_guest_that_is_being_migrated_is_not_saved(tmp_path: Path) -> None:
    class MigratingMachine(InMemoryVm):
        migrating = True

    with pytest.raises(MigrationActive):
        take_snapshot(MigratingMachine(), SnapshotRequest(tmp_path / "s"))
    assert not list(tmp_path.iterdir())


def test_the_end_of_the_machine_does_not_wait_for_the_guests_answer(tmp_path: Path) -> None:
    class SilentGuest(InMemoryVm):
        async def unused_pages(self, timeout_s: float) -> UnusedPages:
            await asyncio.sleep(timeout_s)
            raise AssertionError("not ended")

    async def main() -> SnapshotStatus:
        machine = SilentGuest(64 * MIB)
        machine.snapshots.start(SnapshotRequest(tmp_path / "s", timeout_s=60))
        await asyncio.sleep(PAUSE_S)
        async with asyncio.timeout(20):
            await machine.snapshots.end()
        return machine.snapshots.status

    assert asyncio.run(main()) == SnapshotStatus("failed", error="the guest has ended")
    assert not list(tmp_path.iterdir())


def test_the_end_of_the_machine_during_a_snapshot_logs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unhandled: list[dict[str, Any]] = []
    copying = threading.Event()
    copy_part = Snapshots._pages_copied

    def slow(snapshots: Snapshots, pages: int) -> None:
        copying.set()
        time.sleep(PAUSE_S)
        copy_part(snapshots, pages)

    monkeypatch.setattr(Snapshots, "_pages_copied", slow)

    async def main() -> SnapshotStatus:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: unhandled.append(context)
        )
        machine = InMemoryVm(64 * MIB)
        machine.misc_guest.board.ram.memory.write(0, b"x" * MIB)
        machine.snapshots.start(SnapshotRequest(tmp_path / "s", ask_unused=False))
        while not copying.is_set():
            await asyncio.sleep(0.001)
        await machine.snapshots.end()
        gc.collect()
        return machine.snapshots.status

    assert asyncio.run(main()) == SnapshotStatus("failed", error="the guest has ended")
    assert unhandled == []
