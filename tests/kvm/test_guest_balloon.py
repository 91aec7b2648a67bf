# SPDX-License-Identifier: Apache-2.0
"""The balloon of a real guest, compared with the host's resident memory (RSS).

The guest first touches nearly all of its RAM, so that every page that it inflates is resident, and
keeps a pattern that must survive.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyvmm.harness.guest_session import GuestSession
from pyvmm.machine.catalogue import CATALOGUE
from pyvmm.machine.exit_result import ExitReason
from pyvmm.memory import layout
from pyvmm.memory.rss import resident_bytes
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from tests.kvm.each_dialect import each_dialect
from tests.kvm.fixture_types import RunGuest

pytestmark = pytest.mark.kvm

INFLATE_MIB = 192
SLACK_BYTES = 24 * MIB
"""Tolerance for the guest's own allocations meanwhile. After a deflate up to an eighth of RAM may
also be on the guest's per-CPU lists, which MemFree does not count."""


@pytest.mark.conformance("3.1-1", "5.5.6.2-1")
@pytest.mark.parametrize("dialect", ["bitmap", "standard"])
@pytest.mark.parametrize("vcpus", [1, 4])
def test_inflating_frees_host_memory(run_guest: RunGuest, dialect: str, vcpus: int) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        for command in ("alloc 400", "free", "alloc 96", "fill 11"):
            await guest.command(command)
        rss_full, free_full = resident_bytes(), await guest.free_bytes()
        inflate = await guest.resize_balloon(INFLATE_MIB * MIB // PAGE_BYTES)
        freed = rss_full - resident_bytes()
        assert inflate.pages == INFLATE_MIB * MIB // PAGE_BYTES
        assert freed >= 0.95 * INFLATE_MIB * MIB
        assert freed <= (INFLATE_MIB + 8) * MIB
        assert abs(free_full - await guest.free_bytes() - INFLATE_MIB * MIB) < SLACK_BYTES
        assert await guest.command("verify 11") == f"verified {96 * MIB} wrong 0"

        deflate = await guest.resize_balloon(0)
        assert deflate.pages == inflate.pages
        assert free_full - await guest.free_bytes() < 512 * MIB // 8 + SLACK_BYTES
        assert await guest.command("verify 11") == f"verified {96 * MIB} wrong 0"
        await guest.command("free")
        assert (await guest.command("alloc 350")).startswith("allocated")
        assert await guest.command("fill 12")
        assert await guest.command("verify 12") == f"verified {350 * MIB} wrong 0"
        guest.console.send_line("quit")
        assert (await guest.wait_for_exit()).reason is ExitReason.POWEROFF
        assert guest.vm.balloon.counters.inflate.bad_payloads == 0
        assert guest.vm.balloon.counters.deflate.bad_payloads == 0

    run_guest(scenario, memory_mib=512, dialect=dialect, vcpus=vcpus)


@each_dialect("bitmap", "hybrid", "standard")
def test_the_driver_follows_a_changing_target(run_guest: RunGuest, dialect: str) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        for target_mib in (64, 16, 120, 119, 0, 1, 100, 0):
            await guest.resize_balloon(target_mib * MIB // PAGE_BYTES)
            free_mib = await guest.free_bytes() // MIB
            assert free_mib < 256 - target_mib
        guest.console.send_line("quit")
        assert (await guest.wait_for_exit()).reason is ExitReason.POWEROFF

    run_guest(scenario, dialect=dialect)


@pytest.mark.conformance("4.1.4.5.1-3")
def test_a_guest_without_msi_uses_intx(run_guest: RunGuest) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        for target_mib in (64, 0):
            await guest.resize_balloon(target_mib * MIB // PAGE_BYTES)
        guest.console.send_line("quit")
        slot = next(entry.slot for entry in CATALOGUE if entry.name == "balloon")
        gsi = layout.intx_gsi(slot)
        assert int(await guest.expect(rf"(\d+): +\d+ +IO-APIC +{gsi}-fasteoi")) == gsi
        assert (await guest.wait_for_exit()).reason is ExitReason.POWEROFF

    run_guest(scenario, "pattern; cat /proc/interrupts", append="pci=nomsi")


@pytest.mark.slow
@pytest.mark.timeout(900)
@each_dialect("bitmap")
def test_inflating_7_of_8_gib(
    run_guest: RunGuest, figure: Callable[[str], None], dialect: str
) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        await guest.command("alloc 512")
        await guest.command("fill 5")
        rss_before = resident_bytes()
        inflate = await guest.resize_balloon(7 * 1024 * MIB // PAGE_BYTES)
        rss_inflated = resident_bytes()
        deflate = await guest.resize_balloon(0)
        rss_after = resident_bytes()
        assert inflate.pages == deflate.pages == 7 * 1024 * MIB // PAGE_BYTES
        assert rss_inflated <= rss_before + 16 * MIB
        assert await guest.command("verify 5") == f"verified {512 * MIB} wrong 0"
        for name, moved in (("inflate", inflate), ("deflate", deflate)):
            figure(
                f"{dialect:8} {name} 7 of 8 GiB: {moved.seconds:6.1f} s, "
                f"{moved.requests:6,} requests"
            )
        figure(
            f"{dialect:8} RSS before {rss_before // MIB}, inflated {rss_inflated // MIB}, "
            f"deflated {rss_after // MIB} MiB"
        )
        guest.console.send_line("quit")
        assert (await guest.wait_for_exit()).reason is ExitReason.POWEROFF

    run_guest(scenario, memory_mib=8192, dialect=dialect)
