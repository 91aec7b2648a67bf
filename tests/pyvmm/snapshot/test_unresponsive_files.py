# SPDX-License-Identifier: Apache-2.0
"""Snapshots to a file system that does not respond: the guest runs, and the VM can end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.snapshot.saver import SnapshotRequest, Snapshots
from pyvmm.snapshot.timeouts import SnapshotTimeouts
from pyvmm.snapshot.writer import SnapshotWriter
from pyvmm.units import MIB
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm

SHORT = SnapshotTimeouts(open=0.2, stall=0.2, sync=0.2, end=0.2)
LONG = SnapshotTimeouts(open=60, stall=60, sync=60, end=0.2)
STEPS = ["__enter__", "store", "finish"]


class HangingCall:
    """Stands for one method of every `SnapshotWriter`, which hangs until `released`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
        original = getattr(SnapshotWriter, method)
        self.entered = threading.Event()
        self.released = threading.Event()

        def hang(writer: SnapshotWriter, *arguments: object) -> object:
            self.entered.set()
            assert self.released.wait(60)
            return original(writer, *arguments)

        monkeypatch.setattr(SnapshotWriter, method, hang)


@pytest.fixture
def hanging(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HangingCall]:
    call = HangingCall(monkeypatch, request.param)
    yield call
    call.released.set()


def machine_with_memory() -> InMemoryVm:
    machine = InMemoryVm(64 * MIB)
    machine.ram.memory.write(0, b"something")
    return machine


async def ended(snapshots: Snapshots) -> None:
    async with asyncio.timeout(20):
        while snapshots.active:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("hanging", STEPS, indirect=True)
def test_a_snapshot_fails_and_the_guest_resumes(hanging: HangingCall, tmp_path: Path) -> None:
    async def main() -> None:
        machine = machine_with_memory()
        snapshots = Snapshots(machine, SHORT)
        snapshots.start(SnapshotRequest(tmp_path / "s"))
        await ended(snapshots)
        assert hanging.entered.is_set()
        assert snapshots.status.status == "failed"
        assert " s" in snapshots.status.error
        assert machine.status == "running"
        hanging.released.set()
        async with asyncio.timeout(20):
            while threading.active_count() > before:
                await asyncio.sleep(0.01)
        assert not list(tmp_path.glob(".*.part"))

    before = threading.active_count()
    asyncio.run(main())


@pytest.mark.parametrize("hanging", STEPS, indirect=True)
def test_the_vm_ends_without_waiting_for_the_file(hanging: HangingCall, tmp_path: Path) -> None:
    async def main() -> None:
        machine = machine_with_memory()
        snapshots = Snapshots(machine, LONG)
        snapshots.start(SnapshotRequest(tmp_path / "s"))
        while not hanging.entered.is_set():
            await asyncio.sleep(0.01)
        machine.status = "shutdown"
        await snapshots.end()

    begin = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - begin < 5


def test_a_slow_file_system_that_makes_progress_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The whole takes longer than the limit for one block."""
    original = SnapshotWriter.store

    def slow(writer: SnapshotWriter, number: int, changed: int, full: int) -> None:
        time.sleep(SHORT.stall / 4)
        original(writer, number, changed, full)

    async def main() -> None:
        machine = machine_with_memory()
        for block in range(8):
            machine.ram.memory.write(block * 2 * MIB, b"something")
        snapshots = Snapshots(machine, SHORT)
        snapshots.start(SnapshotRequest(tmp_path / "s"))
        await ended(snapshots)
        assert snapshots.status.status == "completed", snapshots.status.error
        assert snapshots.status.seconds > SHORT.stall

    monkeypatch.setattr(SnapshotWriter, "store", slow)
    asyncio.run(main())
