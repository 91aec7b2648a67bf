# SPDX-License-Identifier: Apache-2.0
"""Twenty times saved and restored: a guest that rewrites its memory all the time loses nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from pyvmm.harness.guest_session import GuestSession, guest_session
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.saver import SnapshotRequest, SnapshotStatus
from pyvmm.state.parts import KINDS
from tests.kvm.churning import (
    BALLOON_MIB,
    MEMORY_MIB,
    PATTERN_MIB,
    Report,
    aim_balloon,
    all_is_well,
    assert_one_life,
    balloon_reaches,
    beats_on,
    churning,
    goes_on,
    spread,
    uptime,
)
from tests.kvm.guests import MakeConfig
from tests.kvm.moments import TRIES

pytestmark = [pytest.mark.kvm, pytest.mark.long, pytest.mark.timeout(3600)]


async def save(guest: GuestSession, path: Path) -> SnapshotStatus:
    """Take a snapshot and have the guest stay as it is saved."""
    snapshots = guest.machine.snapshots
    snapshots.start(SnapshotRequest(path, keep_running=False))
    while snapshots.active:
        await asyncio.sleep(0.01)
    status = snapshots.status
    assert status.status == "completed", status.error
    assert guest.machine.status == "paused"
    return status


async def went_on(guest: GuestSession, printed: str, report: Report) -> Report:
    """It compares and beats as it did where it was saved, and its clock goes forwards."""
    report = await goes_on(guest, report)
    await beats_on(guest)
    assert_one_life(printed, guest.console.text)
    return report


@pytest.mark.parametrize("vcpus", [1, 4])
@pytest.mark.parametrize("dialect", ["bitmap", "standard"])
def test_nothing_is_lost_in_twenty_snapshots(
    make_config: MakeConfig,
    file: Path,
    figure: Callable[[str], None],
    dialect: str,
    vcpus: int,
) -> None:
    saved: list[SnapshotStatus] = []
    begin = time.monotonic()

    async def main() -> None:
        offer = ["free-page-hint"] if dialect == "standard" else []
        config = make_config(memory_mib=MEMORY_MIB, vcpus=vcpus, dialect=dialect, offer=offer)
        stack = AsyncExitStack()
        guest = await stack.enter_async_context(guest_session(config))
        await churning(guest, PATTERN_MIB)
        await balloon_reaches(guest, BALLOON_MIB[0])
        report, clock = await goes_on(guest), await uptime(guest)
        for number in range(TRIES):
            balloon = BALLOON_MIB[(number + 1) % 2]
            aim_balloon(guest, balloon)
            saved.append(await save(guest, file))
            printed = guest.console.text
            await stack.aclose()
            with SnapshotFile(file, KINDS) as snapshot:
                guest = await stack.enter_async_context(guest_session(snapshot.config, snapshot))
            report = await went_on(guest, printed, report)
            now = await uptime(guest)
            assert clock <= now, f"the clock went from {clock} to {now}"
            clock = now
            await balloon_reaches(guest, balloon)
            print(
                f"{time.monotonic() - begin:.0f} s, round {number + 1}: {saved[-1]}\n  {report}",
                flush=True,
            )
        last = await all_is_well(guest)
        await stack.aclose()
        took = spread([status.seconds * 1000 for status in saved], "ms")
        size = sum(status.file_bytes for status in saved) >> 20
        figure(
            f"{TRIES} snapshots, {PATTERN_MIB} MiB, {dialect:8} {vcpus} vCPUs,"
            f" {time.monotonic() - begin:.0f} s: saved in {took}, {size} MiB; {last}"
        )

    asyncio.run(main())
