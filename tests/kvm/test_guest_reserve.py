# SPDX-License-Identifier: Apache-2.0
"""The memory that the driver leaves to the guest, whatever the target (patch 0015)."""

from __future__ import annotations

import asyncio

import pytest

from pyvmm.harness.guest_session import GuestSession
from pyvmm.units import MIB
from tests.kvm.balloon_driver import MIB_PAGES, power_off, vmstat
from tests.kvm.each_dialect import each_dialect
from tests.kvm.fixture_types import RunGuest

pytestmark = pytest.mark.kvm

RAM_MIB = 512
RESERVE_BYTES = 12 * MIB
STEP_BYTES = 2 * MIB
"""The driver looks at the memory that is left before it takes so much."""


@each_dialect("bitmap", "standard")
def test_a_guest_with_the_largest_balloon_starts_programs(
    run_guest: RunGuest, dialect: str
) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        guest.vm.set_balloon_target(MIB)
        await inflated_as_far_as_possible(guest)
        for _ in range(8):
            assert await guest.shell("cat /proc/loadavg | wc -l") == "1\n"
        assert await vmstat(guest, "oom_kill") == 0
        available = await available_bytes(guest)
        assert RESERVE_BYTES // 2 <= available <= RESERVE_BYTES + STEP_BYTES
        await guest.resize_balloon(0)
        await power_off(guest)

    run_guest(scenario, memory_mib=RAM_MIB, dialect=dialect)


@each_dialect("bitmap", "standard")
def test_freed_pages_in_the_lists_of_a_cpu_reach_the_balloon(
    run_guest: RunGuest, dialect: str
) -> None:
    """An eighth of RAM may be in these lists, where MemFree does not count it."""

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        for command in ("grab 352", "free"):
            await guest.command(command)
        target_pages = (await guest.free_bytes() // MIB + 8) * MIB_PAGES
        await guest.resize_balloon(target_pages, force=True)
        assert await guest.shell("dmesg | grep -c 'Out of puff' || true") == "0\n"
        assert await vmstat(guest, "oom_kill") == 0
        await guest.resize_balloon(0)
        await power_off(guest)

    run_guest(scenario, memory_mib=RAM_MIB, dialect=dialect)


async def inflated_as_far_as_possible(guest: GuestSession) -> None:
    """Wait until the balloon has not grown for a second."""
    actual = 0
    while not actual == (actual := guest.vm.balloon.actual) > RAM_MIB * MIB_PAGES // 2:
        await guest.while_running(asyncio.sleep(1))


async def available_bytes(guest: GuestSession) -> int:
    """Return MemAvailable."""
    words = (await guest.command("meminfo")).split()
    return int(words[words.index("available_kib") + 1]) * 1024
