# SPDX-License-Identifier: Apache-2.0
"""Inject a broken, truncated or corrupted connection, and a full disk, at random times.

Whatever happens, the guest continues on exactly one side: its console shows every heartbeat once,
and it finds no wrong byte in the memory that it rewrites in a loop.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvmm.harness.guest_session import GuestSession, guest_session
from pyvmm.machine.catalogue import part_kinds
from pyvmm.qmp import commands
from pyvmm.qmp.messages import Request
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.saver import SnapshotRequest, SnapshotStatus
from pyvmm.units import MIB
from tests.kvm.fault_injection import FaultSchedule
from tests.kvm.faulty_relay import FaultyRelay, InjectedFailure
from tests.kvm.fixture_types import MakeConfig, RunGuest
from tests.kvm.migration_endpoints import GuestReceiver, migration_result, start_migration
from tests.kvm.verifying_guest import (
    SMALL_MEMORY_MIB,
    SMALL_PATTERN_MIB,
    VerificationReport,
    assert_heartbeats_contiguous,
    start_verifying,
    verify_and_power_off,
    verify_more,
    wait_for_heartbeat,
)

pytestmark = [pytest.mark.kvm, pytest.mark.long, pytest.mark.timeout(3600)]

VCPUS = 2
REPLY_SHARE = 0.25
"""The share of the flipped bits that are in the replies of the destination."""


class GuestMigration:
    """A guest that is migrated repeatedly through a faulty connection."""

    def __init__(self, guest: GuestSession, directory: Path, schedule: FaultSchedule) -> None:
        self.guest = guest
        self.total_time_s = 0.0
        """Duration of the last migration."""
        self._report: VerificationReport | None = None
        self._directory = directory
        self._schedule = schedule
        self._number = 0

    async def attempt(self, failure: InjectedFailure, after_s: float) -> str:
        """Migrate the guest and inject `failure` after `after_s` seconds; return the outcome."""
        self._number += 1
        here, there = (self._directory / f"{side}{self._number}" for side in ("here", "there"))
        receiver = GuestReceiver(f"unix:{there}")
        receiving = asyncio.create_task(receiver.receive())
        with FaultyRelay(here, there, self._schedule.random) as relay:
            relay.fail_replies = self._schedule.random.random() < REPLY_SHARE
            start_migration(self.guest, f"unix:{here}")
            await asyncio.sleep(after_s)
            phase = self.guest.vm.migrations.status
            relay.failure = failure
            if failure is InjectedFailure.CUT and phase != "completed":
                relay.cut()
            answer = await migration_result(self.guest)
            self.total_time_s = answer["total-time"] / 1000
            received = await receiving
        print(f"{failure.value} after {after_s:.2f} s, {phase}: {answer}", flush=True)
        try:
            outcome = await self._check_outcome(receiver, received, answer)
        finally:
            if received is not None and self.guest is not received:  # a check failed
                await received.close()
        return f"while {phase}: {outcome}" if relay.injected else ""

    async def _check_outcome(
        self, receiver: GuestReceiver, received: GuestSession | None, answer: dict[str, object]
    ) -> str:
        """Check that exactly one side runs the guest; return which."""
        status = self.guest.vm.status
        if received is None:
            assert answer["status"] == "failed", answer
            assert answer["error-desc"], answer
            assert receiver.error.startswith("no guest has arrived: "), receiver.error
            if (
                status == "paused"
            ):  # the source cannot know whether the guest runs there; the test does
                commands.execute(self.guest.vm, Request("cont", {}))
            else:
                assert status == "running"
            await self._check_running(self.guest)
            assert_heartbeats_contiguous(self.guest.console.text)
            assert receiver.console.text == ""
            return "stays" if status == "running" else "stays after `cont`"
        assert status == ("postmigrate" if answer["status"] == "completed" else "paused"), answer
        printed = self.guest.console.text
        await self._check_running(received)
        assert self.guest.console.text == printed
        assert_heartbeats_contiguous(printed, received.console.text)
        await self.guest.close()
        self.guest = received
        return "migrated" if status == "postmigrate" else "migrated, unknown to its source"

    async def _check_running(self, guest: GuestSession) -> None:
        self._report = await verify_more(guest, self._report)
        await wait_for_heartbeat(guest)


@pytest.mark.parametrize(
    ("failure", "dialect"),
    [
        (InjectedFailure.CUT, "bitmap"),
        (InjectedFailure.TRUNCATED, "standard"),
        (InjectedFailure.FLIPPED, "bitmap"),
    ],
    ids=lambda value: value.value if isinstance(value, InjectedFailure) else value,
)
def test_a_guest_survives_connection_failures_during_migration(
    make_config: MakeConfig,
    directory: Path,
    figure: Callable[[str], None],
    failure: InjectedFailure,
    dialect: str,
) -> None:
    schedule = FaultSchedule(f"connection {failure.value}")
    offer = ["free-page-hint"] if dialect == "standard" else []
    config = make_config(memory_mib=SMALL_MEMORY_MIB, vcpus=VCPUS, dialect=dialect, offer=offer)

    async def main() -> None:
        async with guest_session(config) as first:
            await start_verifying(first, SMALL_PATTERN_MIB)
            migration = GuestMigration(first, directory, schedule)
            try:
                assert await migration.attempt(InjectedFailure.NONE, 0.0) == ""
                assert migration.guest is not first
                total_time_s = migration.total_time_s
                while schedule.next_attempt():
                    if outcome := await migration.attempt(
                        failure, schedule.random.uniform(0, total_time_s)
                    ):
                        schedule.record(outcome)
                report = await verify_and_power_off(migration.guest)
            finally:
                if migration.guest is not first:
                    await migration.guest.close()
        figure(f"{schedule}; {report}")

    asyncio.run(main())


async def save(guest: GuestSession, path: Path) -> SnapshotStatus:
    snapshots = guest.vm.snapshots
    snapshots.start(SnapshotRequest(path))
    while snapshots.active:
        await asyncio.sleep(0.01)
    return snapshots.status


@pytest.fixture
def small_disk(directory: Path) -> Iterator[Path]:
    """Mount a small tmpfs."""
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={8 * SMALL_PATTERN_MIB}m", "tmpfs", directory],
        check=True,
    )
    yield directory
    subprocess.run(["umount", directory], check=True)


def fill_up(disk: Path, left_bytes: int) -> Path:
    """Allocate a file that leaves only `left_bytes` on `disk`; return its path."""
    filler = disk / "filler"
    filler.write_bytes(b"")
    df = subprocess.run(
        ["df", "--output=avail", "-B1", disk], capture_output=True, text=True, check=True
    )
    size = max(int(df.stdout.split()[1]) - left_bytes, 0)
    subprocess.run(["fallocate", "-l", str(size or 1), filler], check=True)
    return filler


def test_a_full_disk_leaves_the_previous_snapshot_intact(
    run_guest: RunGuest, small_disk: Path, figure: Callable[[str], None]
) -> None:
    """Every byte of the previous snapshot remains, and it can still be restored."""
    schedule = FaultSchedule("disk full")
    path = small_disk / "snapshot"

    async def scenario(guest: GuestSession) -> None:
        await start_verifying(guest, SMALL_PATTERN_MIB)
        status = await save(guest, path)
        assert status.status == "completed", status.error
        previous, report = path.read_bytes(), await verify_more(guest)
        while schedule.next_attempt():
            left_bytes = schedule.random.randrange(SMALL_PATTERN_MIB * MIB)
            filler = fill_up(small_disk, left_bytes)
            status = await save(guest, path)
            filler.unlink()
            assert status.status == "failed"
            assert "No space left on device" in status.error
            assert path.read_bytes() == previous
            assert list(small_disk.iterdir()) == [path]
            assert guest.vm.status == "running"
            report = await verify_more(guest, report)
            await wait_for_heartbeat(guest)
            schedule.record("the previous snapshot is intact")
        assert_heartbeats_contiguous(guest.console.text)
        await verify_and_power_off(guest)

    async def restore_previous() -> VerificationReport:
        with SnapshotFile(path, part_kinds()) as snapshot:
            async with guest_session(snapshot.config, snapshot) as guest:
                await verify_more(guest)
                return await verify_and_power_off(guest)

    run_guest(scenario, memory_mib=SMALL_MEMORY_MIB, vcpus=VCPUS)
    report = asyncio.run(restore_previous())
    figure(f"{schedule}; {report}")
