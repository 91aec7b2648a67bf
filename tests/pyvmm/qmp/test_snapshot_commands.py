# SPDX-License-Identifier: Apache-2.0
"""`snapshot-to-file` and `query-snapshot`, and the snapshots that they write."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from inspect import isawaitable
from pathlib import Path
from typing import Any

import pytest

from pyvmm.machine.catalogue import part_kinds
from pyvmm.memory.ram import Ram
from pyvmm.qmp.session import QmpSession
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.writer import SnapshotWriter
from pyvmm.units import MIB
from pyvmm_native.runs import PageRuns
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm

ROOT = Path(__file__).parents[3]
IN_USE, UNUSED, WRITTEN = 5000, 6000, 7000
"""Pages with contents: in use; unused; reported unused, then written."""


def vm_with_pages() -> InMemoryVm:
    vm = InMemoryVm(64 * MIB)
    vm.misc_guest.unused = {UNUSED, WRITTEN}
    vm.written = PageRuns([(WRITTEN, 1)])
    for pfn in (IN_USE, UNUSED, WRITTEN):
        vm.ram.memory.write(pfn * 4096, b"%d" % pfn)
    vm.ram.memory.write(8000 * 4096, bytes(4096))
    return vm


def restored(path: Path) -> tuple[SnapshotFile, Ram]:
    with SnapshotFile(path, part_kinds()) as snapshot:
        ram = Ram(snapshot.config.ram_bytes)
        snapshot.load(ram.memory)
    return snapshot, ram


async def execute(session: QmpSession, command: str, **arguments: Any) -> Any:
    reply = session.reply({"execute": command, "arguments": arguments})
    decoded = json.loads(await reply if isawaitable(reply) else reply)
    return decoded.get("return", decoded)


async def finished(session: QmpSession) -> Any:
    async with asyncio.timeout(30):
        while (answer := await execute(session, "query-snapshot"))["status"] == "active":
            await asyncio.sleep(0.01)
    return answer


def take(vm: InMemoryVm, path: Path, **options: Any) -> Any:
    """Take a snapshot to its end; returns the last answer of query-snapshot."""

    async def main() -> Any:
        session = QmpSession(vm)
        await execute(session, "qmp_capabilities")
        begun = await execute(session, "snapshot-to-file", path=str(path), **options)
        return begun or await finished(session)

    return asyncio.run(main())


def test_the_file_has_all_pages_but_unused_ones(tmp_path: Path) -> None:
    """A page the guest does not use is left out, unless it was written after the query."""
    vm = vm_with_pages()
    answer = take(vm, tmp_path / "s")
    assert answer["status"] == "completed"
    assert answer["pages"]["asked"] == "answered on the misc queue"
    assert answer["pages"]["unused"] == 1
    assert answer["completed"] == answer["total"] == answer["pages"]["stored"] * 4096
    assert answer["file-bytes"] == (tmp_path / "s").stat().st_size
    assert vm.status == "running"
    snapshot, ram = restored(tmp_path / "s")
    assert snapshot.report.stored == answer["pages"]["stored"]
    for pfn, holds in ((IN_USE, b"5000"), (UNUSED, bytes(4)), (WRITTEN, b"7000")):
        assert ram.memory.read(pfn * 4096, 4) == holds
    counts = [answer["pages"][name] for name in ("stored", "zero", "unused", "absent")]
    assert sum(counts) == 64 * MIB // 4096


def test_the_status_before_any_snapshot_is_none() -> None:
    async def main() -> Any:
        session = QmpSession(InMemoryVm(64 * MIB))
        await execute(session, "qmp_capabilities")
        return await execute(session, "query-snapshot")

    assert asyncio.run(main()) == {"status": "none", "completed": 0, "total": 0}


def test_without_a_query_unused_pages_are_saved(tmp_path: Path) -> None:
    answer = take(vm_with_pages(), tmp_path / "s", unused=False)
    assert answer["pages"]["unused"] == 0
    _, ram = restored(tmp_path / "s")
    assert ram.memory.read(UNUSED * 4096, 4) == b"6000"


def test_a_guest_that_does_not_answer_delays_it_by_the_time_out(tmp_path: Path) -> None:
    vm = vm_with_pages()
    vm.misc_guest.commands = set()
    vm.misc_guest.respond = lambda: None  # type: ignore[method-assign]
    answer = take(vm, tmp_path / "s", timeout=0.2)
    assert (answer["status"], answer["pages"]["unused"]) == ("completed", 0)
    assert answer["pages"]["asked"] == "the guest has not responded within 0.2 s"
    assert 0.2 <= answer["seconds"] < 20


def test_the_guest_stays_paused_without_keep_running(tmp_path: Path) -> None:
    vm = vm_with_pages()
    assert take(vm, tmp_path / "s", **{"keep-running": False})["status"] == "completed"
    assert vm.status == "paused"
    assert take(vm, tmp_path / "t")["pages"]["asked"].startswith("the guest is paused")
    assert vm.status == "paused", "it did not run before either"


@pytest.mark.parametrize(
    ("keep_running", "expected"),
    [
        (True, [("STOP", True, False), ("RESUME", True, False)]),
        (False, [("STOP", False, False)]),
    ],
)
def test_the_guest_is_paused_for_the_last_pages_only(
    tmp_path: Path, keep_running: bool, expected: list[tuple[str, bool, bool]]
) -> None:
    """Events, each with whether pages were copied before and whether the file was there."""
    vm = vm_with_pages()
    seen: list[tuple[str, bool, bool]] = []

    def sink(name: str, data: object) -> None:
        copied = vm.snapshots.status.completed_pages > 0
        seen.append((name, copied, (tmp_path / "s").exists()))

    vm.subscribe(sink)
    answer = take(vm, tmp_path / "s", **{"keep-running": keep_running})
    assert answer["status"] == "completed"
    assert seen == expected


def test_after_a_failure_the_guest_runs(tmp_path: Path) -> None:
    vm = vm_with_pages()
    answer = take(vm, tmp_path / "nowhere" / "s", **{"keep-running": False})
    assert answer["status"] == "failed"
    assert "No such file or directory" in answer["error-desc"]
    assert vm.status == "running"


def test_a_snapshot_blocks_another_one_and_cont(tmp_path: Path) -> None:
    vm = vm_with_pages()

    async def main() -> None:
        session = QmpSession(vm)
        await execute(session, "qmp_capabilities")
        path = str(tmp_path / "s")
        assert await execute(session, "snapshot-to-file", path=path) == {}
        busy = await execute(session, "snapshot-to-file", path=path)
        assert busy["error"]["desc"] == "There is a snapshot in process, please wait"
        cont = await execute(session, "cont")
        assert cont == busy
        assert (await finished(session))["status"] == "completed"
        assert await execute(session, "cont") == {}

    asyncio.run(main())


def test_the_end_of_the_guest_ends_the_snapshot(tmp_path: Path) -> None:
    vm = vm_with_pages()
    vm.misc_guest.respond = lambda: None  # type: ignore[method-assign]

    async def main() -> None:
        session = QmpSession(vm)
        await execute(session, "qmp_capabilities")
        await execute(session, "snapshot-to-file", path=str(tmp_path / "s"))
        await asyncio.sleep(0.05)
        vm.quit()
        await vm.snapshots.end()
        answer = await execute(session, "query-snapshot")
        assert (answer["status"], answer["error-desc"]) == ("failed", "the guest has ended")
        again = await execute(session, "snapshot-to-file", path=str(tmp_path / "s"))
        assert again["error"]["desc"] == "Resetting the Virtual Machine is required"

    asyncio.run(main())
    assert os.listdir(tmp_path) == []


def test_the_file_stays_open_until_its_copier_has_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its descriptor could be another file's by then."""
    vm = vm_with_pages()
    copying, resume = threading.Event(), threading.Event()
    stored: list[int] = []
    store = SnapshotWriter.store

    def slow(file: SnapshotWriter, number: int, changed: int, full: int) -> None:
        copying.set()
        assert resume.wait(10)
        store(file, number, changed, full)
        stored.append(number)

    monkeypatch.setattr(SnapshotWriter, "store", slow)

    async def main() -> None:
        session = QmpSession(vm)
        await execute(session, "qmp_capabilities")
        await execute(session, "snapshot-to-file", path=str(tmp_path / "s"))
        while not copying.is_set():
            await asyncio.sleep(0.01)
        vm.quit()
        end = asyncio.create_task(vm.snapshots.end())
        await asyncio.sleep(0.05)
        assert len(os.listdir(tmp_path)) == 1
        resume.set()
        await end
        assert vm.snapshots.status.error == "the guest has ended"

    asyncio.run(main())
    assert len(stored) == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "desc"),
    [
        ({"path": "relative"}, "Parameter 'path' expects an absolute path"),
        ({"path": "/a\0b"}, "Parameter 'path' contains an invalid character"),
        ({"path": "/a", "timeout": 0}, "Parameter 'timeout' expects seconds"),
        ({"path": "/a", "unused": 1}, "Invalid parameter type for 'unused', expected: boolean"),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict[str, Any], desc: str) -> None:
    async def main() -> str:
        session = QmpSession(InMemoryVm(64 * MIB))
        await execute(session, "qmp_capabilities")
        reply = await execute(session, "snapshot-to-file", **arguments)
        return str(reply["error"]["desc"])

    assert asyncio.run(main()).startswith(desc)
