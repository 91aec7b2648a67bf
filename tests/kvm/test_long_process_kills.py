# SPDX-License-Identifier: Apache-2.0
"""Kill the source or the destination at random times of a migration: two guests never run.

The side that is killed is a process of its own (`tests/kvm/migration_process.py`); the other side
is in the test's process.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pyvmm.harness.guest_session import GuestSession, guest_session
from pyvmm.machine.catalogue import part_kinds
from pyvmm.qmp import commands
from pyvmm.qmp.messages import Request
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.saver import SnapshotRequest
from tests.kvm.fault_injection import FaultSchedule
from tests.kvm.fixture_types import RunGuest
from tests.kvm.migration_endpoints import GuestReceiver, migration_result, start_migration
from tests.kvm.migration_process import STATUS_PREFIX
from tests.kvm.verifying_guest import (
    SMALL_MEMORY_MIB,
    SMALL_PATTERN_MIB,
    VerificationReport,
    assert_heartbeats_contiguous,
    heartbeats,
    start_verifying,
    verify_and_power_off,
    verify_more,
    wait_for_heartbeat,
)

pytestmark = [pytest.mark.kvm, pytest.mark.long, pytest.mark.timeout(3600)]

TIMEOUT_S = 120.0
DISCONNECT_S = 10.0
"""The connections of a killed process are closed by then."""


@pytest.fixture
def snapshot(run_guest: RunGuest, file: Path) -> Path:
    """Save a snapshot of a verifying guest."""

    async def scenario(guest: GuestSession) -> None:
        await start_verifying(guest, SMALL_PATTERN_MIB)
        await wait_for_heartbeat(guest)
        guest.vm.snapshots.start(SnapshotRequest(file))
        while guest.vm.snapshots.active:
            await asyncio.sleep(0.02)
        assert guest.vm.snapshots.status.status == "completed"
        await verify_more(guest)
        await verify_and_power_off(guest)

    run_guest(scenario, memory_mib=SMALL_MEMORY_MIB, vcpus=2)
    return file


class MigrationProcess:
    """A running `tests.kvm.migration_process`, and everything it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._reading = asyncio.create_task(self._read())
        self.text = ""

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while data := await self._process.stdout.read(1 << 16):
            self.text += data.decode("utf-8", "replace")

    @property
    def console(self) -> str:
        """The output of its guest, without the status messages."""
        return re.sub(f"{STATUS_PREFIX}.*\n?", "", self.text)  # a kill may cut off the newline

    def has_reported(self, status: str) -> bool:
        """Return whether it has printed a status message that begins with `status`."""
        return STATUS_PREFIX + status in self.text

    async def wait_for(self, status: str) -> None:
        """Wait for a status message that begins with `status`."""
        async with asyncio.timeout(TIMEOUT_S):
            while not self.has_reported(status):
                assert not self._reading.done(), self.text
                await asyncio.sleep(0.01)

    def send_line(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    async def kill(self) -> None:
        """Kill it, and wait until it has ended and `text` holds all of its output."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()
        await self._reading


@asynccontextmanager
async def migration_process(*arguments: object) -> AsyncIterator[MigrationProcess]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.kvm.migration_process", *map(str, arguments)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    running = MigrationProcess(process)
    try:
        yield running
    finally:
        await running.kill()


async def wait_until_running(source: MigrationProcess) -> None:
    """Wait until the source has resumed the guest and the guest prints a heartbeat."""
    await source.wait_for("running")
    async with asyncio.timeout(TIMEOUT_S):
        while not heartbeats(source.console):
            await asyncio.sleep(0.01)


async def migrate_from_killed_source(
    snapshot: Path, address: str, after_s: float = TIMEOUT_S
) -> tuple[str, float]:
    """Migrate a guest here, and kill its source after `after_s` seconds or once it has completed.

    Return the outcome for the guest, or "" if the source had completed, and the seconds.
    """
    receiver = GuestReceiver(address)
    receiving = asyncio.create_task(receiver.receive())
    try:
        async with migration_process("source", snapshot, address) as source:
            await wait_until_running(source)
            begin = time.monotonic()
            source.send_line("migrate")
            end = begin + after_s
            while not (late := source.has_reported("completed")) and time.monotonic() < end:
                await asyncio.sleep(0.005)
            took_s = time.monotonic() - begin
            await source.kill()
            outcome = await _check_after_source_kill(source, receiver, receiving)
    finally:
        receiving.cancel()
        await asyncio.wait({receiving})
    assert outcome == "migrated" or not late
    return "" if late else outcome, took_s


async def _check_after_source_kill(
    source: MigrationProcess,
    receiver: GuestReceiver,
    receiving: asyncio.Task[GuestSession | None],
) -> str:
    """Check that the guest of a killed source ran in one place at a time; return the outcome."""
    await asyncio.wait({receiving}, timeout=DISCONNECT_S)
    if not receiving.done() and not receiver.stream_started:
        assert_heartbeats_contiguous(source.console)
        return "ends with its source, which had sent nothing"
    guest = await receiving
    if guest is None:
        assert receiver.error.startswith("no guest has arrived: "), receiver.error
        assert receiver.console.text == ""
        assert_heartbeats_contiguous(source.console)
        return "ends with its source"
    try:
        await verify_more(guest)
        await wait_for_heartbeat(guest)
        assert_heartbeats_contiguous(source.console, guest.console.text)
        await verify_and_power_off(guest)
    finally:
        await guest.close()
    return "migrated"


def test_a_killed_source_leaves_at_most_one_guest(
    snapshot: Path, address: str, figure: Callable[[str], None]
) -> None:
    schedule = FaultSchedule("source killed")

    async def main() -> None:
        outcome, total_time_s = await migrate_from_killed_source(snapshot, address)
        assert outcome == ""
        while schedule.next_attempt():
            after_s = schedule.random.uniform(0, total_time_s)
            outcome, _ = await migrate_from_killed_source(snapshot, address, after_s)
            if outcome:
                schedule.record(outcome)
        figure(str(schedule))

    asyncio.run(main())


class MigrationToKilledDestinations:
    """Migrates a guest of this process to destinations that are killed."""

    def __init__(self, guest: GuestSession) -> None:
        self._guest = guest
        self._report: VerificationReport | None = None
        self.total_time_s = 0.0
        """Duration of the last undisturbed migration."""

    async def attempt(self, address: str, after_s: float = TIMEOUT_S) -> str:
        """Migrate the guest; kill its destination after `after_s` seconds unless it completed."""
        vm = self._guest.vm
        async with migration_process("destination", address) as there:
            await there.wait_for("waiting")
            begin = time.monotonic()
            start_migration(self._guest, address)
            while vm.migrations.active and time.monotonic() < begin + after_s:
                await asyncio.sleep(0.005)
            phase = vm.migrations.status
            if vm.migrations.active:
                await there.kill()
            answer = await migration_result(self._guest)
            if answer["status"] == "completed":
                self.total_time_s = time.monotonic() - begin
                return await self._check_migrated(there)
            assert answer["status"] == "failed", answer
            assert answer["error-desc"], answer
            return f"while {phase}: {await self._check_stayed(there)}"

    async def _check_stayed(self, there: MigrationProcess) -> str:
        vm, resumed = self._guest.vm, ""
        if vm.status == "paused":  # the source cannot know that its destination was killed
            printed = self._guest.console.text
            await asyncio.sleep(0.3)
            assert self._guest.console.text == printed
            commands.execute(vm, Request("cont", {}))
            resumed = " after `cont`"
        else:
            assert heartbeats(there.console) == []
        assert vm.status == "running"
        self._report = await verify_more(self._guest, self._report)
        await wait_for_heartbeat(self._guest)
        assert_heartbeats_contiguous(self._guest.console.text)
        return f"stays{resumed}"

    async def _check_migrated(self, there: MigrationProcess) -> str:
        """Check a migration that completed before the kill: only the destination runs."""
        printed = self._guest.console.text
        await asyncio.sleep(0.3)
        assert self._guest.console.text == printed
        assert self._guest.vm.status == "postmigrate"
        assert_heartbeats_contiguous(printed, there.console)
        return ""


@asynccontextmanager
async def restored(path: Path) -> AsyncIterator[GuestSession]:
    with SnapshotFile(path, part_kinds()) as file:
        async with guest_session(file.config, file) as guest:
            await verify_more(guest)
            await wait_for_heartbeat(guest)
            yield guest


def test_a_killed_destination_leaves_exactly_one_guest(
    snapshot: Path, address: str, figure: Callable[[str], None]
) -> None:
    schedule = FaultSchedule("destination killed")

    async def main() -> None:
        async with restored(snapshot) as guest:
            first = MigrationToKilledDestinations(guest)
            assert await first.attempt(address) == ""
        report = None
        while schedule.next_attempt():
            async with restored(snapshot) as guest:  # a new one after each that completed
                migration = MigrationToKilledDestinations(guest)
                while schedule.next_attempt():
                    after_s = schedule.random.uniform(0, first.total_time_s)
                    if not (outcome := await migration.attempt(address, after_s)):
                        break
                    schedule.record(outcome)
                else:
                    report = await verify_and_power_off(guest)
        figure(f"{schedule}; {report}")

    asyncio.run(main())
