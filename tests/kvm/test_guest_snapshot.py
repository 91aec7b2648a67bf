# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a real guest: no data is lost, no heartbeat repeated, the clock never goes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from pyvmm.harness.guest_session import GuestSession, guest_session
from pyvmm.machine.catalogue import part_kinds
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.saver import SnapshotRequest, SnapshotStatus
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from tests.kvm.balloon_driver import power_off
from tests.kvm.each_dialect import each_dialect
from tests.kvm.fixture_types import RunGuest
from tests.kvm.pyvmm_process import RunProcess, run_pyvmm
from tests.kvm.verifying_guest import (
    start_verifying,
    verify_and_power_off,
    verify_more,
    wait_for_heartbeat,
)

pytestmark = pytest.mark.kvm

PATTERN_MIB = 96
VERIFIED_MIB = 64
BALLAST = "b=/bin/busybox; b=`echo $b $b $b $b $b`; cat $b $b $b $b $b $b $b $b >/ballast"
"""Some 60 MiB of file contents, to make the copy take longer."""
BALLOON_PAGES = 64 * MIB // PAGE_BYTES
VERIFIED = f"verified {PATTERN_MIB * MIB} wrong 0"
UPTIME = "cut -d' ' -f1 /proc/uptime"


async def save(guest: GuestSession, path: Path, **options: Any) -> SnapshotStatus:
    """Save a snapshot while the event loop serves the guest; return its status."""
    snapshots = guest.vm.snapshots
    snapshots.start(SnapshotRequest(path, **options))
    while snapshots.active:
        await asyncio.sleep(0.01)
    return snapshots.status


async def resume(path: Path, scenario: Callable[[GuestSession], Any]) -> None:
    """Restore a new machine from `path` and run `scenario` with it."""
    with SnapshotFile(path, part_kinds()) as snapshot:
        async with guest_session(snapshot.config, snapshot) as guest:
            await scenario(guest)


async def uptime(guest: GuestSession) -> float:
    return float(await guest.shell(UPTIME))


@pytest.mark.parametrize(
    ("dialect", "vcpus"),
    [
        *product(["bitmap", "standard"], [1, 4]),
        ("hybrid", 1),
        pytest.param("ranges", 1, marks=pytest.mark.long),
    ],
)
def test_a_restored_guest_continues(
    run_guest: RunGuest, file: Path, figure: Callable[[str], None], dialect: str, vcpus: int
) -> None:
    """The balloon is inflated when the guest is saved, and is resized after the restore."""
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
        assert report.ram * PAGE_BYTES == guest.vm.ram_bytes
        assert report.stored * PAGE_BYTES >= PATTERN_MIB * MIB
        assert status.file_bytes == file.stat().st_size < (PATTERN_MIB + 56) * MIB
        assert await guest.command("verify 7") == VERIFIED
        await guest.resize_balloon(0)
        await power_off(guest)
        figure(
            f"snapshot {dialect:8} {vcpus} vCPUs: {status.file_bytes // MIB} of"
            f" {guest.vm.ram_bytes // MIB} MiB in {status.seconds:.2f} s, {report}"
        )

    async def restored(guest: GuestSession) -> None:
        assert guest.vm.balloon.actual == BALLOON_PAGES
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
def test_a_guest_keeps_running_while_it_is_saved(
    run_guest: RunGuest, directory: Path, figure: Callable[[str], None], vcpus: int
) -> None:
    """The guest rewrites its memory in a loop, and the file holds its state at one instant."""
    files = [directory / f"{number}.snapshot" for number in range(2)]

    async def scenario(guest: GuestSession) -> None:
        await start_verifying(guest, VERIFIED_MIB)
        guest.vm.throttle(0)
        await guest.shell(BALLAST)
        await verify_more(guest)
        heartbeats_meanwhile = 0
        for path in files:
            snapshots = guest.vm.snapshots
            snapshots.start(SnapshotRequest(path, ask_unused=False))
            while snapshots.active:
                await wait_for_heartbeat(guest)
                heartbeats_meanwhile += snapshots.active and guest.vm.status == "running"
            status = snapshots.status
            assert status.status == "completed", status.error
            figure(
                f"snapshot of a writing guest, {vcpus} vCPUs: {status.file_bytes / MIB:.1f} MiB in"
                f" {status.seconds:.2f} s, stopped {status.stopped_seconds:.2f} s"
            )
        assert heartbeats_meanwhile, "the guest ran while it was saved"
        await verify_more(guest)
        await verify_and_power_off(guest)

    async def restored(guest: GuestSession) -> None:
        await verify_more(guest)
        await wait_for_heartbeat(guest)
        await verify_and_power_off(guest)

    run_guest(scenario, memory_mib=384, vcpus=vcpus)
    for path in files:
        asyncio.run(resume(path, restored))


def test_snapshot_and_restore_commands(guest_image: Path, file: Path) -> None:
    qmp = f"unix:{file.parent}/qmp"
    append = 'loglevel=4 pyvmm.run="pattern"'
    with RunProcess(guest_image, "--memory", "128M", "--append", append, "--qmp", qmp) as first:
        first.expect("user space up")
        assert first.command("alloc 32").startswith("ok")
        assert first.command("fill 3").startswith("ok")
        assert run_pyvmm("snapshot", file, "--qmp", qmp, "--stop").returncode == 0
        assert first.status() == 0
    assert "all checksums match" in run_pyvmm("snapshot", file, "--info").stdout
    with RunProcess("--restore", file, "--qmp", qmp) as second:
        assert second.command("verify 3") == f"ok verified {32 * MIB} wrong 0"
        assert run_pyvmm("snapshot", file, "--qmp", qmp).returncode == 0
        assert second.command("verify 3") == f"ok verified {32 * MIB} wrong 0"
        assert second.command("quit").startswith("ok")
        assert second.status() == 0


def test_a_damaged_snapshot_is_refused_with_one_line(run_guest: RunGuest, file: Path) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        assert (await save(guest, file)).status == "completed"
        guest.console.send_line("quit")
        await guest.wait_for_exit()

    run_guest(scenario, memory_mib=64)
    # Not any byte: where a block was copied again, the file keeps space that nothing reads.
    with SnapshotFile(file, part_kinds()) as snapshot:
        block = snapshot.blocks[len(snapshot.blocks) // 2]
    data = bytearray(file.read_bytes())
    data[block.offset] ^= 4
    file.write_bytes(data)
    done = run_pyvmm("run", "--restore", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot be used: wrong checksum" in done.stderr


@each_dialect("bitmap", "standard")
def test_free_memory_is_not_saved(
    run_guest: RunGuest, file: Path, figure: Callable[[str], None], dialect: str
) -> None:
    """An idle guest whose RAM was touched and freed again, with and without a guest request."""

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
