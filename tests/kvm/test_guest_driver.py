# SPDX-License-Identifier: Apache-2.0
"""The guest's balloon driver under out-of-memory, suspend, unbind and compaction.

The guest's counters, the device's counters and a pattern that must survive show what became of the
pages. All dialects run the same tests, so the patched driver must behave as the stock one does.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyvmm.harness.errors import CommandFailed
from pyvmm.harness.guest_session import GuestSession
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from tests.kvm.balloon_driver import (
    DEVICE,
    DRIVER,
    MIB_PAGES,
    REBIND,
    SMALL_PAGES_ONLY,
    SUSPEND,
    TIMES,
    driver_times,
    free_blocks_bytes,
    power_off,
    squeeze,
    total_kib,
    vmstat,
)
from tests.kvm.each_dialect import each_dialect
from tests.kvm.fixture_types import RunGuest

pytestmark = pytest.mark.kvm


@each_dialect("bitmap", "ranges", "standard")
def test_deflate_on_oom_prevents_the_oom_killer(run_guest: RunGuest, dialect: str) -> None:
    """VIRTIO_BALLOON_F_DEFLATE_ON_OOM (VIRTIO 1.2, 5.5.6.1)."""
    mib = 100 if dialect == "standard" else 300

    async def scenario(guest: GuestSession) -> None:
        squeezed = await squeeze(guest)
        replies = await guest.shell(f"pattern grab {mib} fill 7 verify 7")
        assert replies.splitlines()[-1] == f"ok verified {mib * MIB} wrong 0"
        assert await vmstat(guest, "oom_kill") == 0
        assert guest.vm.balloon.actual < squeezed - (mib - 60) * MIB_PAGES
        await guest.resize_balloon(0)
        await power_off(guest)

    run_guest(scenario, memory_mib=512, dialect=dialect, offer=["deflate-on-oom"])


@each_dialect("bitmap", "standard")
def test_without_deflate_on_oom_the_oom_killer_runs(run_guest: RunGuest, dialect: str) -> None:
    async def scenario(guest: GuestSession) -> None:
        squeezed = await squeeze(guest)
        with pytest.raises(CommandFailed, match="status 137"):
            await guest.shell("pattern grab 300")
        assert await vmstat(guest, "oom_kill") == 1
        assert guest.vm.balloon.actual == squeezed
        await guest.resize_balloon(0)
        await power_off(guest)

    run_guest(scenario, memory_mib=512, dialect=dialect, withhold=["deflate-on-oom"])


@each_dialect("bitmap", "standard")
def test_suspend_deflates_and_resume_inflates_again(run_guest: RunGuest, dialect: str) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        await guest.command("alloc 48")
        await guest.command("fill 3")
        target_pages = 100 * MIB_PAGES
        await guest.resize_balloon(target_pages)
        for cycle in (1, 2):
            await guest.shell(SUSPEND)
            await guest.resize_balloon(target_pages)
            counters = guest.vm.balloon.counters
            assert counters.deflate.pages == cycle * target_pages
            assert counters.inflate.pages == (cycle + 1) * target_pages
        assert await guest.command("verify 3") == f"verified {48 * MIB} wrong 0"
        await guest.resize_balloon(0)
        await power_off(guest)

    run_guest(scenario, dialect=dialect)


@each_dialect("bitmap", "hybrid", "standard")
def test_unbinding_the_driver_deflates_the_balloon(run_guest: RunGuest, dialect: str) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        balloon = guest.vm.balloon
        device = (await guest.shell(DEVICE)).strip()
        whole_kib = await total_kib(guest)
        target_pages = 128 * MIB_PAGES
        await guest.resize_balloon(target_pages)
        assert await total_kib(guest) == whole_kib - 128 * 1024
        await guest.shell(f"echo {device} > {DRIVER}/unbind")
        assert balloon.actual == 0
        assert balloon.counters.inflate.pages == balloon.counters.deflate.pages == target_pages
        assert await total_kib(guest) == whole_kib
        await guest.command("alloc 180")
        await guest.command("fill 9")
        assert await guest.command("verify 9") == f"verified {180 * MIB} wrong 0"
        await guest.command("free")
        await guest.shell(f"echo {device} > {DRIVER}/bind")
        await guest.resize_balloon(target_pages)
        # Unbind while the balloon inflates, too.
        guest.vm.set_balloon_target(guest.vm.ram_bytes - 200 * MIB)
        await guest.shell(f"echo {device} > {DRIVER}/unbind")
        assert await total_kib(guest) == whole_kib
        guest.vm.set_balloon_target(guest.vm.ram_bytes)
        await guest.shell(f"echo {device} > {DRIVER}/bind")
        await guest.resize_balloon(target_pages)
        await guest.resize_balloon(0)
        assert await total_kib(guest) == whole_kib
        await power_off(guest)

    run_guest(scenario, dialect=dialect)


@pytest.mark.parametrize(("dialect", "request_bytes"), [("bitmap", 40), ("hybrid", 24)])
def test_a_request_for_one_page_is_short(
    run_guest: RunGuest, dialect: str, request_bytes: int
) -> None:
    """It names new pages only: a bitmap spans only from its first to its last page."""

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        balloon = guest.vm.balloon
        for start_pages in (0, 20 * MIB_PAGES):
            await guest.resize_balloon(start_pages)
            before = balloon.counters
            await guest.resize_balloon(start_pages + 1)
            await guest.resize_balloon(start_pages)
            for new, old in (
                (balloon.counters.inflate, before.inflate),
                (balloon.counters.deflate, before.deflate),
            ):
                assert (new.requests - old.requests, new.pages - old.pages) == (1, 1)
                assert new.bytes - old.bytes == request_bytes
        await power_off(guest)

    run_guest(scenario, dialect=dialect)


@pytest.mark.parametrize("dialect", ["bitmap", "ranges"])
def test_misc_requests_work_again_after_suspend_and_rebind(
    run_guest: RunGuest, dialect: str
) -> None:
    """All commands of the misc queue, after each restart of the driver."""

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        requests = guest.vm.misc_requests
        for restart in (None, SUSPEND, REBIND):
            if restart is not None:
                await guest.shell(restart)
            dropped = [await vmstat(guest, f"drop_{cache}") for cache in ("pagecache", "slab")]
            await guest.while_running(requests.drop_caches())
            assert [await vmstat(guest, f"drop_{cache}") for cache in ("pagecache", "slab")] == [
                count + 1 for count in dropped
            ]
            await guest.while_running(requests.sync_filesystems())
            unused = await guest.while_running(requests.unused_pages())
            assert unused.pages > 100 * MIB_PAGES
        await power_off(guest)

    run_guest(scenario, dialect=dialect)


@each_dialect("bitmap", "hybrid", "standard")
def test_inflate_and_compaction_in_a_fragmented_guest(run_guest: RunGuest, dialect: str) -> None:
    """Two of three pages are free: the balloon allocates small blocks, compaction moves them."""

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        await guest.shell(SMALL_PAGES_ONLY)
        await guest.command("alloc 72")
        await guest.command("fill 4")
        await guest.command("thin 3")
        kept = f"verified {24 * MIB} wrong 0"
        target_pages = 40 * MIB_PAGES
        assert await free_blocks_bytes(guest, 2) < target_pages * PAGE_BYTES
        await guest.resize_balloon(target_pages)
        assert await guest.command("verify 4") == kept

        # Compaction moves one page at a time, and fails quickly while kcompactd runs.
        await guest.shell(
            "while moved=$(sed -n 's/^balloon_migrate //p' /proc/vmstat); [ $moved -lt 100 ];"
            " do echo 1 > /proc/sys/vm/compact_memory; sleep 0.1; done"
        )
        assert guest.vm.balloon.actual == target_pages
        assert await guest.command("verify 4") == kept
        await guest.resize_balloon(0)
        assert await guest.command("verify 4") == kept
        moved = await vmstat(guest, "balloon_migrate")
        assert guest.vm.balloon.counters.inflate.pages == target_pages + moved
        assert guest.vm.balloon.counters.deflate.pages == target_pages + moved
        await guest.command("free")
        await guest.command("alloc 64")
        await guest.command("fill 5")
        assert await guest.command("verify 5") == f"verified {64 * MIB} wrong 0"
        await power_off(guest)

    run_guest(scenario, memory_mib=128, dialect=dialect)


@each_dialect("bitmap", "hybrid", "standard")
def test_the_driver_reports_its_timing(run_guest: RunGuest, dialect: str) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        for direction, memory, target_pages in (
            ("inflate", "alloc_ns", 100 * MIB_PAGES),
            ("deflate", "free_ns", 0),
        ):
            moved = await guest.resize_balloon(target_pages)
            sums = await driver_times(guest, direction)
            assert (sums["pages"], sums["messages"]) == (moved.pages, moved.requests)
            assert 0 < sums[memory] < sums["total_ns"]
            assert 0 < sums["tell_ns"] < sums["total_ns"]
            assert sums[memory] + sums["tell_ns"] <= sums["total_ns"]
            await guest.shell(f"for i in {TIMES}/{direction}_*; do echo 0 > $i; done")
            assert set((await driver_times(guest, direction)).values()) == {0}
        with pytest.raises(CommandFailed):
            await guest.shell(f"echo soon > {TIMES}/inflate_pages")
        await power_off(guest)

    run_guest(scenario, dialect=dialect)


@each_dialect("hybrid")
def test_the_memory_of_an_encoder_is_bounded(
    run_guest: RunGuest, figure: Callable[[str], None], dialect: str
) -> None:
    """Single pages and every other page: the most that a round, or unused pages, take."""
    peaks: list[int] = []

    async def peak(guest: GuestSession) -> int:
        value = int(await guest.shell(f"cat {TIMES}/encoder_peak_bytes"))
        await guest.shell(f"echo 0 > {TIMES}/encoder_peak_bytes")
        return value

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        await guest.shell(SMALL_PAGES_ONLY)
        peaks.append(await peak(guest))
        for command in ("alloc 144", "fill 6", "thin 2"):
            await guest.command(command)
        await guest.resize_balloon(60 * MIB_PAGES)
        peaks.append(await peak(guest))
        if dialect != "standard":
            await guest.while_running(guest.vm.misc_requests.unused_pages())
            peaks.append(await peak(guest))
        await guest.resize_balloon(0)
        peaks.append(await peak(guest))
        assert peaks[0] <= (1024 if dialect == "standard" else 48 * 1024)
        assert max(peaks) <= peaks[0] + (0 if dialect == "standard" else 96 * 1024)
        figure(f"memory of the encoder, {dialect}: {', '.join(map(str, peaks))} bytes")
        await power_off(guest)

    run_guest(scenario, dialect=dialect)
