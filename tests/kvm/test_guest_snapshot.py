# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a real guest: nothing is lost, nothing comes twice, the clock goes forwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyvmm.harness.guest_session import GuestSession, guest_session
from pyvmm.machine.exit_result import ExitReason
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.saver import SnapshotRequest, SnapshotStatus
from pyvmm.state.parts import KINDS
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from tests.kvm.churning import all_is_well, beats_on, churning, goes_on
from tests.kvm.guests import RunGuest
from tests.kvm.programs import Program, pyvmm

pytestmark = pytest.mark.kvm

PATTERN_MIB = 96
CHURN_MIB = 64
BALLAST = "b=/bin/busybox; b=`echo $b $b $b $b $b`; cat $b $b $b $b $b $b $b $b >/ballast"
"""Some 60 MiB more that is to be copied."""
BALLOON_PAGES = 64 * MIB // PAGE_BYTES
VERIFIED = f"verified {PATTERN_MIB * MIB} wrong 0"
UPTIME = "cut -d' ' -f1 /proc/uptime"


async def save(guest: GuestSession, path: Path, **wishes: Any) -> SnapshotStatus:
    """Take a snapshot while everything else goes on; returns what it took."""
    snapshots = guest.machine.snapshots
    snapshots.start(SnapshotRequest(path, **wishes))
    while snapshots.active:
        await asyncio.sleep(0.01)
    return snapshots.status


async def resume(path: Path, scenario: Callable[[GuestSession], Any]) -> None:
    """Restore a machine of its own from `path` and run `scenario` in it."""
    with SnapshotFile(path, KINDS) as snapshot:
        async with guest_session(snapshot.config, snapshot) as guest:
            await scenario(guest)


async def uptime(guest: GuestSession) -> float:
    return float(await guest.shell(UPTIME))


async def power_off(guest: GuestSession) -> None:
    guest.console.send_line("quit")
    assert (await guest.wait_for_exit()).ending is ExitReason.POWEROFF
    counters = guest.machine.balloon.counters
    assert counters.inflate.bad_payloads == counters.deflate.bad_payloads == 0


@pytest.mark.parametrize("dialect", ["bitmap", "standard"])
@pytest.mark.parametrize("vcpus", [1, 4])
def test_a_guest_goes_on_from_its_snapshot(
    run_guest: RunGuest, file: Path, figure: Callable[[str], None], dialect: str, vcpus: int
) -> None:
    """With the balloon half way to its target, which the driver then reaches and leaves again."""
    saved_at = 0.0

    async def scenario(guest: GuestSession) -> None:
        nonlocal saved_at
        await guest.wait_for_user_space()
        for command in ("alloc 160", "fill 1", "free", f"alloc {PATTERN_MIB}", "fill 7"):
            await guest.command(command)
        await guest.resize_balloon(BALLOON_PAGES)
        saved_at = await uptime(guest)
        status = await save(guest, file)
        assert status.status == "completed", status.error
        report = status.report
        assert report is not None
        assert report.ballooned == BALLOON_PAGES
        assert report.ram * PAGE_BYTES == guest.machine.ram_bytes
        assert report.stored * PAGE_BYTES >= PATTERN_MIB * MIB
        assert status.file_bytes == file.stat().st_size < (PATTERN_MIB + 56) * MIB
        assert await guest.command("verify 7") == VERIFIED
        await guest.resize_balloon(0)
        await power_off(guest)
        figure(
            f"snapshot {dialect:8} {vcpus} vCPUs: {status.file_bytes // MIB} of"
            f" {guest.machine.ram_bytes // MIB} MiB in {status.seconds:.2f} s, {report}"
        )

    async def restored(guest: GuestSession) -> None:
        assert guest.machine.balloon.actual == BALLOON_PAGES
        assert await guest.command("verify 7") == VERIFIED
        now = await uptime(guest)
        assert saved_at <= now < saved_at + 60
        await guest.resize_balloon(BALLOON_PAGES + 1000)
        await guest.resize_balloon(0)
        assert await guest.command("verify 7") == VERIFIED
        await guest.command("free")
        await guest.command("alloc 150")
        await guest.command("fill 9")
        assert await guest.command("verify 9") == f"verified {150 * MIB} wrong 0"
        online = await guest.shell("grep -c ^processor /proc/cpuinfo")
        assert int(online) == vcpus
        await power_off(guest)

    offer = ["free-page-hint"] if dialect == "standard" else []
    run_guest(scenario, memory_mib=256, dialect=dialect, vcpus=vcpus, offer=offer)
    for _ in range(2):
        asyncio.run(resume(file, restored))


@pytest.mark.parametrize("vcpus", [1, 4])
def test_a_guest_goes_on_while_it_is_copied(
    run_guest: RunGuest, directory: Path, figure: Callable[[str], None], vcpus: int
) -> None:
    """It rewrites its memory all the time, and what is in the file is of one moment."""
    files = [directory / f"{number}.snapshot" for number in range(2)]

    async def scenario(guest: GuestSession) -> None:
        await churning(guest, CHURN_MIB)
        guest.machine.throttle(0)
        await guest.shell(BALLAST)
        await goes_on(guest)
        beats_meanwhile = 0
        for path in files:
            snapshots = guest.machine.snapshots
            snapshots.start(SnapshotRequest(path, ask_unused=False))
            while snapshots.active:
                await beats_on(guest)
                beats_meanwhile += snapshots.active and guest.machine.status == "running"
            status = snapshots.status
            assert status.status == "completed", status.error
            figure(
                f"snapshot of a guest at work, {vcpus} vCPUs: {status.file_bytes / MIB:.1f} MiB in"
                f" {status.seconds:.2f} s, stopped {status.stopped_seconds:.2f} s"
            )
        assert beats_meanwhile, "while it was copied"
        await goes_on(guest)
        await all_is_well(guest)

    async def restored(guest: GuestSession) -> None:
        await goes_on(guest)
        await beats_on(guest)
        await all_is_well(guest)

    run_guest(scenario, memory_mib=384, vcpus=vcpus)
    for path in files:
        asyncio.run(resume(path, restored))


def test_from_one_process_to_another(guest_image: Path, file: Path) -> None:
    """As a person does it, with the commands."""
    qmp = f"unix:{file.parent}/qmp"
    append = 'loglevel=4 pyvmm.run="pattern"'
    with Program(guest_image, "--memory", "128M", "--append", append, "--qmp", qmp) as first:
        first.expect("user space up")
        assert first.command("alloc 32").startswith("ok")
        assert first.command("fill 3").startswith("ok")
        assert pyvmm("snapshot", file, "--qmp", qmp, "--stop").returncode == 0
        assert first.status() == 0
    assert "every checksum is right" in pyvmm("snapshot", file, "--info").stdout
    with Program("--restore", file, "--qmp", qmp) as second:
        assert second.command("verify 3") == f"ok verified {32 * MIB} wrong 0"
        assert pyvmm("snapshot", file, "--qmp", qmp).returncode == 0
        assert second.command("verify 3") == f"ok verified {32 * MIB} wrong 0"
        assert second.command("quit").startswith("ok")
        assert second.status() == 0


def test_a_damaged_snapshot_is_one_error(run_guest: RunGuest, file: Path) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        assert (await save(guest, file)).status == "completed"
        guest.console.send_line("quit")
        await guest.wait_for_exit()

    run_guest(scenario, memory_mib=64)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    done = pyvmm("run", "--restore", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot be used: wrong checksum" in done.stderr


@pytest.mark.parametrize("dialect", ["bitmap", "standard"])
def test_what_was_freed_is_not_in_the_file(
    run_guest: RunGuest, file: Path, figure: Callable[[str], None], dialect: str
) -> None:
    """An idle guest whose RAM was touched and freed again, with and without being asked."""

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        for command in ("alloc 400", "fill 1", "free"):
            await guest.command(command)
        sizes = []
        for ask in (True, False):
            status = await save(guest, file, ask_unused=ask)
            assert status.status == "completed", status.error
            sizes.append(status.file_bytes)
            figure(
                f"snapshot {dialect:8} {'with' if ask else 'without'} unused pages:"
                f" {status.file_bytes / MIB:.1f} of 512 MiB in {status.seconds:.2f} s,"
                f" stopped {status.stopped_seconds:.2f} s"
            )
        assert sizes[0] <= 0.25 * sizes[1]
        await power_off(guest)

    offer = ["free-page-hint"] if dialect == "standard" else []
    run_guest(scenario, memory_mib=512, dialect=dialect, offer=offer)
