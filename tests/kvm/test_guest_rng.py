# SPDX-License-Identifier: Apache-2.0
"""The entropy device of a real guest: Linux's hw_random core and virtio_rng driver."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from devices.rng.device import RngDevice
from pyvmm.harness.guest_session import GuestSession, guest_session
from pyvmm.machine.catalogue import part_kinds
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.saver import SnapshotRequest
from tests.kvm.fixture_types import RunGuest

pytestmark = pytest.mark.kvm

CURRENT = "cat /sys/class/misc/hw_random/rng_current"
READ_64 = "dd if=/dev/hwrng bs=64 count=1 2>/dev/null | md5sum"
BYTES_PER_S = 128
"""The driver's buffers have 64 bytes: each waits for half a second."""


def rng(guest: GuestSession) -> RngDevice:
    model = guest.vm.machine.model("rng")
    assert isinstance(model, RngDevice)
    return model


async def until_a_buffer_begins_to_wait(guest: GuestSession) -> None:
    supplied = rng(guest).supplied_bytes
    while rng(guest).supplied_bytes == supplied or not rng(guest).save_own_state()["waiting"]:
        await guest.while_running(asyncio.sleep(0.001))


def test_the_guest_reads_random_bytes(run_guest: RunGuest) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        assert await guest.shell(CURRENT) == "virtio_rng.0\n"
        before = rng(guest).supplied_bytes
        read = [await guest.shell(READ_64) for _ in range(3)]
        assert len(set(read)) == 3
        assert rng(guest).supplied_bytes >= before + 3 * 64 - 64, "the driver reads ahead"
        assert rng(guest).queues[0].counters.bad_payloads == 0

    run_guest(scenario, rng=0)


def test_a_guest_without_the_option_has_no_entropy_device(run_guest: RunGuest) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        assert await guest.shell(CURRENT) == "none\n"
        assert "rng" not in guest.vm.machine.pci_devices

    run_guest(scenario)


def test_the_rate_limit_holds_across_a_snapshot(run_guest: RunGuest, file: Path) -> None:
    async def save(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        begin, before = time.monotonic(), rng(guest).supplied_bytes
        await guest.shell(
            f"dd if=/dev/hwrng bs=64 count={4 * BYTES_PER_S // 64} 2>/dev/null >/dev/null"
        )
        elapsed_s = time.monotonic() - begin
        supplied = rng(guest).supplied_bytes - before
        assert supplied <= BYTES_PER_S * (elapsed_s + 1)
        assert elapsed_s > 2, "four seconds' worth, of which one may be credit"
        await guest.shell("dd if=/dev/hwrng bs=64 count=1000 >/random 2>/dev/null &")
        await asyncio.sleep(1.5)
        await until_a_buffer_begins_to_wait(guest)
        guest.vm.snapshots.start(SnapshotRequest(file, keep_running=False))
        while guest.vm.snapshots.active:
            await asyncio.sleep(0.01)
        assert guest.vm.snapshots.status.status == "completed"
        assert rng(guest).save_own_state()["waiting"], "the reader's buffer is in flight"

    async def restored() -> None:
        with SnapshotFile(file, part_kinds()) as snapshot:
            assert snapshot.config.rng == BYTES_PER_S
            async with guest_session(snapshot.config, snapshot) as guest:
                before = int(await guest.shell("wc -c </random"))
                await asyncio.sleep(2)
                assert int(await guest.shell("wc -c </random")) > before

    run_guest(save, rng=BYTES_PER_S)
    asyncio.run(restored())
