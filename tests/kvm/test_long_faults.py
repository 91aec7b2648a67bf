# SPDX-License-Identifier: Apache-2.0
"""A connection that breaks, ends early or flips a bit, and a full disk, each at random moments.

Whatever happens, the guest goes on, on exactly one side: it says so on its console, where no beat
comes twice, and it finds no wrong byte in memory that it rewrites all the time.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvmm.harness.guest_session import GuestSession, guest_session
from pyvmm.qmp import commands
from pyvmm.qmp.messages import Request
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.saver import SnapshotRequest, SnapshotStatus
from pyvmm.state.parts import KINDS
from pyvmm.units import MIB
from tests.kvm.churning import (
    SMALL_MEMORY_MIB,
    SMALL_PATTERN_MIB,
    Report,
    all_is_well,
    assert_one_life,
    beats_on,
    churning,
    goes_on,
)
from tests.kvm.guests import MakeConfig, RunGuest
from tests.kvm.moments import Moments
from tests.kvm.moving import Home, migrate, migrated
from tests.kvm.relay import Harm, Relay

pytestmark = [pytest.mark.kvm, pytest.mark.long, pytest.mark.timeout(3600)]

VCPUS = 2
SHARE_OF_REPLIES = 0.25
"""So many of the flipped bits are in what the destination says."""


class Voyage:
    """A guest that is sent through a bad network, again and again."""

    def __init__(self, guest: GuestSession, directory: Path, moments: Moments) -> None:
        self.guest = guest
        self.took_s = 0.0
        """Of the last migration."""
        self._report: Report | None = None
        self._directory = directory
        self._moments = moments
        self._number = 0

    async def attempt(self, harm: Harm, after_s: float) -> str:
        """Migrate it, and do harm after that many seconds; returns what became of it."""
        self._number += 1
        here, there = (self._directory / f"{side}{self._number}" for side in ("here", "there"))
        home = Home(f"unix:{there}")
        waiting = asyncio.create_task(home.guest())
        with Relay(here, there, self._moments.choose) as relay:
            relay.harms_replies = self._moments.choose.random() < SHARE_OF_REPLIES
            migrate(self.guest, f"unix:{here}")
            await asyncio.sleep(after_s)
            phase = self.guest.machine.migrations.status
            relay.harm = harm
            if harm is Harm.CUT and phase != "completed":
                relay.cut()
            answer = await migrated(self.guest)
            self.took_s = answer["total-time"] / 1000
            arrived = await waiting
        print(f"{harm.value} after {after_s:.2f} s, {phase}: {answer}", flush=True)
        try:
            outcome = await self._settle(home, arrived, answer)
        finally:
            if arrived is not None and self.guest is not arrived:  # something was not as it must be
                await arrived.close()
        return f"while {phase}: {outcome}" if relay.done else ""

    async def _settle(
        self, home: Home, arrived: GuestSession | None, answer: dict[str, object]
    ) -> str:
        """See who has the guest; that one goes on, and the other does not."""
        status = self.guest.machine.status
        if arrived is None:
            assert answer["status"] == "failed", answer
            assert answer["error-desc"], answer
            assert home.error.startswith("no guest has arrived: "), home.error
            if status == "paused":  # the source cannot know; we do
                commands.execute(self.guest.machine, Request("cont", {}))
            else:
                assert status == "running"
            await self._alive(self.guest)
            assert_one_life(self.guest.console.text)
            assert home.console.text == ""
            return "stays" if status == "running" else "stays, when it is told to"
        assert status == ("postmigrate" if answer["status"] == "completed" else "paused"), answer
        printed = self.guest.console.text
        await self._alive(arrived)
        assert self.guest.console.text == printed
        assert_one_life(printed, arrived.console.text)
        await self.guest.close()
        self.guest = arrived
        return "moved" if status == "postmigrate" else "moved, and its source cannot know"

    async def _alive(self, guest: GuestSession) -> None:
        self._report = await goes_on(guest, self._report)
        await beats_on(guest)


@pytest.mark.parametrize(
    ("harm", "dialect"),
    [(Harm.CUT, "bitmap"), (Harm.TRUNCATED, "standard"), (Harm.FLIPPED, "bitmap")],
    ids=lambda value: value.value if isinstance(value, Harm) else value,
)
def test_a_bad_connection(
    make_config: MakeConfig,
    directory: Path,
    figure: Callable[[str], None],
    harm: Harm,
    dialect: str,
) -> None:
    moments = Moments(f"connection {harm.value}")
    offer = ["free-page-hint"] if dialect == "standard" else []
    config = make_config(memory_mib=SMALL_MEMORY_MIB, vcpus=VCPUS, dialect=dialect, offer=offer)

    async def main() -> None:
        async with guest_session(config) as first:
            await churning(first, SMALL_PATTERN_MIB)
            voyage = Voyage(first, directory, moments)
            try:
                assert await voyage.attempt(Harm.NONE, 0.0) == ""
                assert voyage.guest is not first
                takes_s = voyage.took_s
                while moments.left:
                    if outcome := await voyage.attempt(harm, moments.choose.uniform(0, takes_s)):
                        moments.struck(outcome)
                report = await all_is_well(voyage.guest)
            finally:
                if voyage.guest is not first:
                    await voyage.guest.close()
        figure(f"{moments}; {report}")

    asyncio.run(main())


async def save(guest: GuestSession, path: Path) -> SnapshotStatus:
    snapshots = guest.machine.snapshots
    snapshots.start(SnapshotRequest(path))
    while snapshots.active:
        await asyncio.sleep(0.01)
    return snapshots.status


@pytest.fixture
def small_disk(directory: Path) -> Iterator[Path]:
    """A file system of its own, in memory."""
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={8 * SMALL_PATTERN_MIB}m", "tmpfs", directory],
        check=True,
    )
    yield directory
    subprocess.run(["umount", directory], check=True)


def fill_up(disk: Path, left_bytes: int) -> Path:
    """Have a file of zeros leave only so much room."""
    filler = disk / "filler"
    filler.write_bytes(b"")
    room = subprocess.run(
        ["df", "--output=avail", "-B1", disk], capture_output=True, text=True, check=True
    )
    size = max(int(room.stdout.split()[1]) - left_bytes, 0)
    subprocess.run(["fallocate", "-l", str(size or 1), filler], check=True)
    return filler


def test_a_full_disk(run_guest: RunGuest, small_disk: Path, figure: Callable[[str], None]) -> None:
    """The old snapshot stays, every byte of it, and can still be gone on from."""
    moments = Moments("disk full")
    path = small_disk / "snapshot"

    async def scenario(guest: GuestSession) -> None:
        await churning(guest, SMALL_PATTERN_MIB)
        status = await save(guest, path)
        assert status.status == "completed", status.error
        old, report = path.read_bytes(), await goes_on(guest)
        while moments.left:
            room = moments.choose.randrange(SMALL_PATTERN_MIB * MIB)
            filler = fill_up(small_disk, room)
            status = await save(guest, path)
            filler.unlink()
            assert status.status == "failed"
            assert "No space left on device; choose another place or make room" in status.error
            assert path.read_bytes() == old
            assert list(small_disk.iterdir()) == [path]
            assert guest.machine.status == "running"
            report = await goes_on(guest, report)
            await beats_on(guest)
            moments.struck("the old snapshot is whole")
        assert_one_life(guest.console.text)
        await all_is_well(guest)

    async def from_the_old_one() -> Report:
        with SnapshotFile(path, KINDS) as snapshot:
            async with guest_session(snapshot.config, snapshot) as guest:
                await goes_on(guest)
                return await all_is_well(guest)

    run_guest(scenario, memory_mib=SMALL_MEMORY_MIB, vcpus=VCPUS)
    report = asyncio.run(from_the_old_one())
    figure(f"{moments}; {report}")
