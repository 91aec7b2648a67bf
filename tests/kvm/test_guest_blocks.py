# SPDX-License-Identifier: Apache-2.0
"""Blocks of 2 MiB that the guest's balloon driver keeps whole, and what splits them.

The driver counts the blocks that it moves, and those that it splits (patch 0013 in
guest_images/patches); /proc/kpageflags marks each page that the guest must not touch.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pyvmm.harness.guest_session import GuestSession, restored_session
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from tests.kvm.balloon_driver import (
    MIB_PAGES,
    REBIND,
    SMALL_PAGES_ONLY,
    SUSPEND,
    TIMES,
    free_blocks_bytes,
    power_off,
    squeeze,
    total_kib,
    vmstat,
)
from tests.kvm.fixture_types import RunGuest

pytestmark = pytest.mark.kvm

BLOCK_ORDER = 9
BLOCK_PAGES = 1 << BLOCK_ORDER
HEADER_BYTES = 32
HUGE_PAGES = "cd /sys/kernel/mm/transparent_hugepage; echo always > enabled; echo always > defrag"
BLOCKS = "/sys/module/virtio_balloon/parameters/blocks"
OFFLINE = 1 << 23
"""KPF_OFFLINE in /proc/kpageflags."""


async def block_counters(guest: GuestSession) -> tuple[int, int, int]:
    """Return the blocks inflated, deflated and split since the guest started."""
    counted = await guest.shell(f"cd {TIMES}; cat inflate_blocks deflate_blocks block_splits")
    inflated, deflated, split = map(int, counted.split())
    return inflated, deflated, split


async def offline_pages(guest: GuestSession) -> int:
    """Return the number of pages that the guest marks as offline."""
    flags = await guest.shell("od -An -v -tx8 -w8 /proc/kpageflags | sort | uniq -c")
    pairs = (line.split() for line in flags.splitlines())
    return sum(int(count) for count, value in pairs if int(value, 16) & OFFLINE)


@pytest.mark.parametrize("dialect", ["bitmap", "hybrid", "ranges"])
def test_blocks_join_and_leave_the_balloon_whole(run_guest: RunGuest, dialect: str) -> None:
    """Only what is no multiple of a block splits one."""

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        whole_kib = await total_kib(guest)
        for command in ("alloc 32", "fill 6"):
            await guest.command(command)
        free_bytes = await free_blocks_bytes(guest, BLOCK_ORDER)
        before = guest.vm.balloon.counters
        moved = await guest.resize_balloon(50 * BLOCK_PAGES)
        counters = guest.vm.balloon.counters
        assert await block_counters(guest) == (50, 0, 0)
        assert (moved.pages, moved.requests) == (50 * BLOCK_PAGES, 1)
        assert counters.inflate.bytes - before.inflate.bytes <= HEADER_BYTES + 50 * 8
        assert await total_kib(guest) == whole_kib - 100 * 1024

        await guest.resize_balloon(50 * BLOCK_PAGES - 3)
        assert await block_counters(guest) == (50, 0, 1)
        await guest.resize_balloon(51 * BLOCK_PAGES + 5)
        assert await block_counters(guest) == (51, 0, 1)
        if dialect == "bitmap":  # the same in all, and slow to count
            assert await offline_pages(guest) == 51 * BLOCK_PAGES + 5
        await guest.resize_balloon(0)
        assert await block_counters(guest) == (51, 50, 1)
        assert await total_kib(guest) == whole_kib
        assert await guest.command("verify 6") == f"verified {32 * MIB} wrong 0"
        # Per-CPU lists keep up to an eighth of RAM, in blocks of this size too.
        assert await free_blocks_bytes(guest, BLOCK_ORDER) > free_bytes - 40 * MIB

        await guest.shell(f"echo 0 > {BLOCKS}")
        await guest.resize_balloon(50 * BLOCK_PAGES)
        await guest.resize_balloon(0)
        assert await block_counters(guest) == (51, 50, 1)
        await power_off(guest)

    run_guest(scenario, dialect=dialect)


def test_a_kernel_that_checks_freed_pages_gets_all_back(run_guest: RunGuest) -> None:
    """Blocks that are joined of single pages again are as free of traces as whole ones."""

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        free_bytes = await guest.free_bytes()
        for blocks in (0, 1):
            await guest.shell(f"echo {blocks} > {BLOCKS}")
            await guest.resize_balloon(32 * BLOCK_PAGES)
            await guest.resize_balloon(0)
        assert "Bad page state" not in await guest.shell("dmesg")
        assert await guest.free_bytes() > free_bytes - 32 * MIB
        await power_off(guest)

    run_guest(scenario, memory_mib=160, dialect="bitmap", append="page_poison=1")


def test_restarts_of_the_driver_return_blocks_whole(run_guest: RunGuest) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        for restarts, restart in enumerate((SUSPEND, REBIND), 1):
            await guest.resize_balloon(32 * BLOCK_PAGES)
            await guest.shell(restart)
            await guest.resize_balloon(32 * BLOCK_PAGES)
            inflated, deflated, split = await block_counters(guest)
            assert (inflated - deflated, split) == (32, 0)
            assert deflated == restarts * 32
        await guest.resize_balloon(0)
        await power_off(guest)

    run_guest(scenario, dialect="bitmap")


def test_only_synchronous_compaction_splits_blocks(run_guest: RunGuest) -> None:
    """Allocating huge pages compacts memory asynchronously; writing to compact_memory does not."""

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        await guest.shell(SMALL_PAGES_ONLY)
        for command in ("alloc 64", "fill 4", "thin 3"):
            await guest.command(command)
        kept = await guest.command("verify 4")
        free_bytes = await free_blocks_bytes(guest, BLOCK_ORDER)
        target_pages = free_bytes // PAGE_BYTES + 16 * MIB_PAGES
        await guest.resize_balloon(target_pages, force=True)
        inflated, _, split = await block_counters(guest)
        assert 8 <= inflated <= free_bytes // PAGE_BYTES // BLOCK_PAGES
        assert split == 0

        stalls = await vmstat(guest, "compact_stall")
        await guest.shell(HUGE_PAGES + "; pattern grab 8 fill 2 verify 2")
        assert await vmstat(guest, "compact_stall") > stalls
        assert (await block_counters(guest))[2] == 0

        await guest.shell(
            "while moved=$(sed -n 's/^balloon_migrate //p' /proc/vmstat);"
            f" [ $moved -lt 100 ] || [ $(cat {TIMES}/block_splits) = 0 ];"
            " do echo 1 > /proc/sys/vm/compact_memory; sleep 0.1; done"
        )
        assert guest.vm.balloon.actual == target_pages
        await guest.resize_balloon(0)
        assert await guest.command("verify 4") == kept
        inflated, deflated, split = await block_counters(guest)
        assert inflated - deflated == split > 0
        moved = await vmstat(guest, "balloon_migrate")
        assert guest.vm.balloon.counters.inflate.pages == target_pages + moved
        assert guest.vm.balloon.counters.deflate.pages == target_pages + moved
        assert await offline_pages(guest) == 0
        await power_off(guest)

    run_guest(scenario, memory_mib=160, dialect="bitmap")


def test_out_of_memory_splits_blocks(run_guest: RunGuest) -> None:
    """The driver gives back 1 MiB at a time (VIRTIO_BALLOON_F_DEFLATE_ON_OOM)."""

    async def scenario(guest: GuestSession) -> None:
        squeezed = await squeeze(guest)
        held, _, _ = await block_counters(guest)
        assert held > 0
        replies = await guest.shell("pattern grab 100 fill 7 verify 7")
        assert replies.splitlines()[-1] == f"ok verified {100 * MIB} wrong 0"
        assert await vmstat(guest, "oom_kill") == 0
        freed = squeezed - guest.vm.balloon.actual
        _, deflated, split = await block_counters(guest)
        assert (deflated, freed % MIB_PAGES) == (0, 0)
        assert 0 < split <= freed / BLOCK_PAGES + 1
        await guest.resize_balloon(0)
        await power_off(guest)

    run_guest(scenario, memory_mib=256, dialect="bitmap", offer=["deflate-on-oom"])


def test_a_restored_balloon_has_its_blocks(run_guest: RunGuest, file: Path) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        for command in ("alloc 24", "fill 7"):
            await guest.command(command)
        await guest.resize_balloon(32 * BLOCK_PAGES)
        await guest.save_snapshot(file, keep_running=False)

    async def restored() -> None:
        async with restored_session(file) as guest:
            assert await guest.command("verify 7") == f"verified {24 * MIB} wrong 0"
            await guest.resize_balloon(30 * BLOCK_PAGES + 7)
            assert await block_counters(guest) == (32, 1, 1)
            await guest.resize_balloon(0)
            assert await block_counters(guest) == (32, 31, 1)
            assert await guest.command("verify 7") == f"verified {24 * MIB} wrong 0"
            await power_off(guest)

    run_guest(scenario, memory_mib=160, dialect="bitmap")
    asyncio.run(restored())
