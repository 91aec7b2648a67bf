# SPDX-License-Identifier: Apache-2.0
"""The source or the destination is killed at any moment of a migration: there are never two guests.

Whoever is killed is a process of its own (`tests/kvm/side.py`); the other side is here.
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
from pyvmm.qmp import commands
from pyvmm.qmp.messages import Request
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.saver import SnapshotRequest
from pyvmm.state.parts import KINDS
from tests.kvm.churning import (
    SMALL_MEMORY_MIB,
    SMALL_PATTERN_MIB,
    Report,
    all_is_well,
    assert_one_life,
    beats,
    beats_on,
    churning,
    goes_on,
)
from tests.kvm.guests import RunGuest
from tests.kvm.moments import Moments
from tests.kvm.moving import Home, migrate, migrated

pytestmark = [pytest.mark.kvm, pytest.mark.long, pytest.mark.timeout(3600)]

TIMEOUT_S = 120.0
GONE_S = 10.0
"""Who is killed has hung up by then."""


@pytest.fixture
def snapshot(run_guest: RunGuest, file: Path) -> Path:
    """A guest at work, to go on from."""

    async def scenario(guest: GuestSession) -> None:
        await churning(guest, SMALL_PATTERN_MIB)
        await beats_on(guest)
        guest.machine.snapshots.start(SnapshotRequest(file))
        while guest.machine.snapshots.active:
            await asyncio.sleep(0.02)
        assert guest.machine.snapshots.status.status == "completed"
        await goes_on(guest)
        await all_is_well(guest)

    run_guest(scenario, memory_mib=SMALL_MEMORY_MIB, vcpus=2)
    return file


class Side:
    """A running `tests.kvm.side`, and all it has printed."""

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
        """What its guest has printed."""
        return re.sub("side: .*\n?", "", self.text)  # it may be killed before the newline

    async def says(self, words: str) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while words not in self.text:
                assert not self._reading.done(), self.text
                await asyncio.sleep(0.01)

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    async def kill(self) -> None:
        """End it without a warning; returns when it is gone, and its last words are in `text`."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()
        await self._reading


@asynccontextmanager
async def side(*arguments: object) -> AsyncIterator[Side]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.kvm.side", *map(str, arguments)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    other = Side(process)
    try:
        yield other
    finally:
        await other.kill()


async def leaves(source: Side) -> None:
    await source.says("side: running")
    async with asyncio.timeout(TIMEOUT_S):
        while not beats(source.console):
            await asyncio.sleep(0.01)


async def killed_source(
    snapshot: Path, address: str, after_s: float = TIMEOUT_S
) -> tuple[str, float]:
    """Move a guest here, and kill its source after that long, or when it has no guest any more.

    Returns what became of the guest, and the seconds.
    """
    home = Home(address)
    waiting = asyncio.create_task(home.guest())
    try:
        async with side("leave", snapshot, address) as source:
            await leaves(source)
            begin = time.monotonic()
            source.say("migrate")
            end = begin + after_s
            while not (late := "side: completed" in source.text) and time.monotonic() < end:
                await asyncio.sleep(0.005)
            took_s = time.monotonic() - begin
            await source.kill()
            outcome = await _became(source, home, waiting)
    finally:
        waiting.cancel()
        await asyncio.wait({waiting})
    assert outcome == "moved" or not late
    return "" if late else outcome, took_s


async def _became(source: Side, home: Home, waiting: asyncio.Task[GuestSession | None]) -> str:
    """See what became of the guest of a killed source, in all of whose cases it has one life."""
    await asyncio.wait({waiting}, timeout=GONE_S)
    if not waiting.done() and not home.touched:
        assert_one_life(source.console)
        return "dies with its source, which had not come to move it"
    guest = await waiting
    if guest is None:
        assert home.error.startswith("no guest has arrived: "), home.error
        assert home.console.text == ""
        assert_one_life(source.console)
        return "dies with its source, its snapshot is whole"
    try:
        await goes_on(guest)
        await beats_on(guest)
        assert_one_life(source.console, guest.console.text)
        await all_is_well(guest)
    finally:
        await guest.close()
    return "moved"


def test_the_source_is_killed(snapshot: Path, address: str, figure: Callable[[str], None]) -> None:
    moments = Moments("source killed")

    async def main() -> None:
        outcome, takes_s = await killed_source(snapshot, address)
        assert outcome == ""
        while moments.left:
            after_s = moments.choose.uniform(0, takes_s)
            outcome, _ = await killed_source(snapshot, address, after_s)
            if outcome:
                moments.struck(outcome)
        figure(str(moments))

    asyncio.run(main())


class Stayer:
    """A guest here whose destinations are killed."""

    def __init__(self, guest: GuestSession) -> None:
        self._guest = guest
        self._report: Report | None = None
        self.takes_s = 0.0
        """Of a migration that nobody disturbed."""

    async def attempt(self, address: str, after_s: float = TIMEOUT_S) -> str:
        """Move it away, and kill its destination after that long, unless it has moved by then."""
        machine = self._guest.machine
        async with side("arrive", address) as there:
            await there.says("side: waiting")
            begin = time.monotonic()
            migrate(self._guest, address)
            while machine.migrations.active and time.monotonic() < begin + after_s:
                await asyncio.sleep(0.005)
            phase = machine.migrations.status
            if machine.migrations.active:
                await there.kill()
            answer = await migrated(self._guest)
            if answer["status"] == "completed":
                self.takes_s = time.monotonic() - begin
                return await self._moved(there)
            assert answer["status"] == "failed", answer
            assert answer["error-desc"], answer
            return f"while {phase}: {await self._stays(there)}"

    async def _stays(self, there: Side) -> str:
        machine, told = self._guest.machine, ""
        if machine.status == "paused":  # it cannot know; we have seen its destination dead
            printed = self._guest.console.text
            await asyncio.sleep(0.3)
            assert self._guest.console.text == printed
            commands.execute(machine, Request("cont", {}))
            told = ", when it is told to"
        else:
            assert beats(there.console) == []
        assert machine.status == "running"
        self._report = await goes_on(self._guest, self._report)
        await beats_on(self._guest)
        assert_one_life(self._guest.console.text)
        return f"stays{told}"

    async def _moved(self, there: Side) -> str:
        """Nobody was killed, or too late to matter: its home is there."""
        printed = self._guest.console.text
        await asyncio.sleep(0.3)
        assert self._guest.console.text == printed
        assert self._guest.machine.status == "postmigrate"
        assert_one_life(printed, there.console)
        return ""


@asynccontextmanager
async def restored(path: Path) -> AsyncIterator[GuestSession]:
    with SnapshotFile(path, KINDS) as file:
        async with guest_session(file.config, file) as guest:
            await goes_on(guest)
            await beats_on(guest)
            yield guest


def test_the_destination_is_killed(
    snapshot: Path, address: str, figure: Callable[[str], None]
) -> None:
    moments = Moments("destination killed")

    async def main() -> None:
        async with restored(snapshot) as guest:
            first = Stayer(guest)
            assert await first.attempt(address) == ""
        report = None
        while moments.left:
            async with restored(snapshot) as guest:  # again, whenever it has moved after all
                stayer = Stayer(guest)
                while moments.left:
                    after_s = moments.choose.uniform(0, first.takes_s)
                    if not (outcome := await stayer.attempt(address, after_s)):
                        break
                    moments.struck(outcome)
                else:
                    report = await all_is_well(guest)
        figure(f"{moments}; {report}")

    asyncio.run(main())
