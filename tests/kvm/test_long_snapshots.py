# SPDX-License-Identifier: Apache-2.0
"""Save and restore a guest that continuously rewrites and verifies its memory, repeatedly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from pyvmm.harness.guest_session import GuestSession, guest_session
from pyvmm.machine.catalogue import part_kinds
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.saver import SnapshotRequest, SnapshotStatus
from tests.kvm.fault_injection import REPETITIONS
from tests.kvm.fixture_types import MakeConfig
from tests.kvm.verifying_guest import (
    BALLOON_MIB,
    MEMORY_MIB,
    PATTERN_MIB,
    VerificationReport,
    assert_heartbeats_contiguous,
    min_median_max,
    set_balloon_target,
    start_verifying,
    uptime,
    verify_and_power_off,
    verify_more,
    wait_for_balloon,
    wait_for_heartbeat,
)

pytestmark = [pytest.mark.kvm, pytest.mark.long, pytest.mark.timeout(3600)]


async def save(guest: GuestSession, path: Path) -> SnapshotStatus:
    """Save a snapshot and leave the guest paused."""
    snapshots = guest.vm.snapshots
    snapshots.start(SnapshotRequest(path, keep_running=False))
    while snapshots.active:
        await asyncio.sleep(0.01)
    status = snapshots.status
    assert status.status == "completed", status.error
    assert guest.vm.status == "paused"
    return status


async def check_restored(
    guest: GuestSession, printed: str, report: VerificationReport
) -> VerificationReport:
    """Check that the restored guest continues from `report` and from its last heartbeat."""
    report = await verify_more(guest, report)
    await wait_for_heartbeat(guest)
    assert_heartbeats_contiguous(printed, guest.console.text)
    return report


@pytest.mark.parametrize("vcpus", [1, 4])
@pytest.mark.parametrize("dialect", ["bitmap", "standard"])
def test_no_data_is_lost_in_repeated_snapshots(
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
        await start_verifying(guest, PATTERN_MIB)
        await wait_for_balloon(guest, BALLOON_MIB[0])
        report, clock = await verify_more(guest), await uptime(guest)
        for number in range(REPETITIONS):
            balloon = BALLOON_MIB[(number + 1) % 2]
            set_balloon_target(guest, balloon)
            saved.append(await save(guest, file))
            printed = guest.console.text
            await stack.aclose()
            with SnapshotFile(file, part_kinds()) as snapshot:
                guest = await stack.enter_async_context(guest_session(snapshot.config, snapshot))
            report = await check_restored(guest, printed, report)
            now = await uptime(guest)
            assert clock <= now, f"the clock went from {clock} to {now}"
            clock = now
            await wait_for_balloon(guest, balloon)
            print(
                f"{time.monotonic() - begin:.0f} s, round {number + 1}: {saved[-1]}\n  {report}",
                flush=True,
            )
        last = await verify_and_power_off(guest)
        await stack.aclose()
        took = min_median_max([status.seconds * 1000 for status in saved], "ms")
        size = sum(status.file_bytes for status in saved) >> 20
        figure(
            f"{REPETITIONS} snapshots, {PATTERN_MIB} MiB, {dialect:8} {vcpus} vCPUs,"
            f" {time.monotonic() - begin:.0f} s: saved in {took}, {size} MiB; {last}"
        )

    asyncio.run(main())
