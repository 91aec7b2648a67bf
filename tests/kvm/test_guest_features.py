# SPDX-License-Identifier: Apache-2.0
"""The effect of each feature bit in a real guest and on the host.

The table of docs/reference/features.md names a test for every bit of each dialect;
`test_features_table.py` checks that these tests exist. Statistics, out of memory and unused pages
are tested in other files.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from devices.balloon import features
from devices.balloon.dialects import BITMAP, HYBRID, RANGES, Dialect, by_name
from devices.virtio.queue import Requests
from pyvmm.balloon.guest_requests import DriverUnavailable
from pyvmm.harness.guest_session import GuestSession
from pyvmm.machine.exit_result import ExitReason
from pyvmm.memory.rss import resident_bytes
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from pyvmm_native.page_requests import PageRequests
from tests.kvm.each_dialect import each_dialect
from tests.kvm.fixture_types import RunGuest

pytestmark = pytest.mark.kvm

MIB_PAGES = MIB // PAGE_BYTES
SLACK_BYTES = 24 * MIB
REPORTS_TIMEOUT_S = 120
OWN_BITS = (1 << 24) - 1 | ((1 << 64) - 1 & ~((1 << 50) - 1))
"""Bits of the device type (VIRTIO 1.2, 2.2), of which Linux shows 64."""


async def accepted(guest: GuestSession) -> int:
    """Return the device-specific bits that the driver accepted; the guest and the device agree."""
    bits = (await guest.shell("cat /sys/bus/virtio/devices/virtio0/features")).strip()
    mask = sum(1 << bit for bit, on in enumerate(bits) if on == "1") & OWN_BITS
    assert mask == guest.vm.balloon.accepted & OWN_BITS
    return mask


async def hold(guest: GuestSession, mib: int, seed: int) -> None:
    await guest.command(f"alloc {mib}")
    await guest.command(f"fill {seed}")


async def intact(guest: GuestSession, mib: int, seed: int) -> bool:
    return await guest.command(f"verify {seed}") == f"verified {mib * MIB} wrong 0"


async def power_off(guest: GuestSession) -> None:
    guest.console.send_line("quit")
    assert (await guest.wait_for_exit()).reason is ExitReason.POWEROFF


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(REPORTS_TIMEOUT_S):
        while not done():
            await asyncio.sleep(0.05)


# Every dialect.


@each_dialect("bitmap", "standard")
def test_must_tell_host(run_guest: RunGuest, dialect: str) -> None:
    """The guest uses no page before its deflate request: all of them still hold zeros."""
    deflated: list[int] = []
    used_too_early: list[int] = []

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        assert await accepted(guest) & features.MUST_TELL_HOST
        await hold(guest, 180, 1)
        await guest.command("free")
        watch_deflates(guest)
        rss = resident_bytes()
        await guest.resize_balloon(100 * MIB_PAGES)
        assert rss - resident_bytes() > 90 * MIB
        await guest.resize_balloon(0)
        assert sum(deflated) == 100 * MIB_PAGES
        assert used_too_early == []
        await power_off(guest)

    def watch_deflates(guest: GuestSession) -> None:
        ram, balloon = guest.vm.ram, guest.vm.balloon
        serve = balloon.serve_requests

        def watching(queue: int, requests: Requests) -> None:
            if queue == 1:
                assert isinstance(requests, PageRequests)
                deflated.append(requests.pages)
                used_too_early.extend(
                    start
                    for start, count in requests.runs
                    if ram.memory.read(start * PAGE_BYTES, count * PAGE_BYTES)
                    != bytes(count * PAGE_BYTES)
                )
            serve(queue, requests)

        balloon.serve_requests = watching  # type: ignore[method-assign]

    run_guest(scenario, dialect=dialect)


@each_dialect("bitmap", "standard")
def test_withheld_features_are_not_accepted(run_guest: RunGuest, dialect: str) -> None:
    """The driver accepts only offered features, and still inflates and deflates without them."""
    known = by_name(dialect).features
    withheld = known.default & ~known.fixed
    names = [name for name, bit in known.options.items() if bit & withheld]

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        assert await accepted(guest) == known.fixed
        await hold(guest, 64, 2)
        for target_mib in (64, 0):
            await guest.resize_balloon(target_mib * MIB_PAGES)
        assert await intact(guest, 64, 2)
        await power_off(guest)

    run_guest(scenario, dialect=dialect, withhold=names)


# The standard dialect.


@pytest.mark.conformance("5.5.6.5.2-5", "5.5.6.5.2-6")
def test_free_page_hint(run_guest: RunGuest) -> None:
    """Hints cover most of the guest's free memory and no page in use, so they can be discarded.

    The device itself discards no hint. This test does, before it sets the command id to DONE, as
    VIRTIO 1.2, 5.5.6.5.2 allows.
    """

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        assert await accepted(guest) & features.FREE_PAGE_HINT
        await guest.command("alloc 300")
        await guest.command("free")
        await hold(guest, 64, 4)
        ram = guest.vm.ram
        free, rss = await guest.free_bytes(), resident_bytes()
        async with guest.vm.free_page_hints.held() as hints:
            assert hints.complete
            hinted_bytes = hints.pages.pages * PAGE_BYTES
            assert 0.8 * free < hinted_bytes <= free
            assert abs(free - hinted_bytes - await guest.free_bytes()) < SLACK_BYTES
            assert rss - resident_bytes() < SLACK_BYTES, "a hint alone discards nothing"
            ram.discard(hints.pages)
            assert rss - resident_bytes() > 180 * MIB
            assert await intact(guest, 64, 4)
        await until_free(guest, free)
        assert await intact(guest, 64, 4)
        async with guest.vm.free_page_hints.held() as again:
            assert again.complete
            assert again.pages.pages * PAGE_BYTES > 0.8 * free
        await until_free(guest, free)
        await guest.command("free")
        await hold(guest, 300, 5)
        assert await intact(guest, 300, 5)
        counters = guest.vm.balloon.counters
        assert counters.discarded_bytes == counters.reported_bytes == 0
        await power_off(guest)

    async def until_free(guest: GuestSession, free_bytes: int) -> None:
        async with asyncio.timeout(REPORTS_TIMEOUT_S):
            while await guest.free_bytes() < free_bytes - SLACK_BYTES:
                await asyncio.sleep(0.05)

    run_guest(scenario, dialect="standard", memory_mib=512, offer=["free-page-hint"])


def test_without_free_page_hint_no_request_is_sent(run_guest: RunGuest) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        assert not await accepted(guest) & features.FREE_PAGE_HINT
        with pytest.raises(DriverUnavailable):
            async with guest.vm.free_page_hints.held():
                pytest.fail("hints without the feature")
        await power_off(guest)

    run_guest(scenario, dialect="standard")


@pytest.mark.conformance("5.5.2-1", "5.5.6.7.2-1")
@pytest.mark.parametrize("hinting", [False, True])
def test_reporting(run_guest: RunGuest, hinting: bool) -> None:
    """Freed memory is reported and discarded, and is usable again.

    Without FREE_PAGE_HINT Linux uses another index for the reporting queue (see `Dialect.roles`).
    """

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        assert await accepted(guest) & features.REPORTING
        await hold(guest, 180, 6)
        rss = resident_bytes()
        await guest.command("free")
        await until(lambda: rss - resident_bytes() > 140 * MIB)
        counters = guest.vm.balloon.counters
        assert counters.reported_bytes == counters.reported_pages * PAGE_BYTES > 140 * MIB
        await hold(guest, 180, 7)
        assert abs(rss - resident_bytes()) < SLACK_BYTES
        assert await intact(guest, 180, 7)
        await power_off(guest)

    offer = ["reporting", *(["free-page-hint"] if hinting else [])]
    # A report covers up to 128 MiB, which cannot be allocated until the device returns it.
    run_guest(scenario, dialect="standard", offer=offer, memory_mib=512)


@pytest.mark.conformance("5.5.6.6.2-1", "5.5.6.7.2-2")
@pytest.mark.parametrize(
    ("append", "poison_val"), [("page_poison=1", 0xAAAA_AAAA), ("init_on_free=1", 0)]
)
def test_page_poison(run_guest: RunGuest, append: str, poison_val: int) -> None:
    """Free pages that hold a pattern are kept; those that hold zeros may be discarded.

    The guest's kernel checks the pattern of each page that it allocates, and logs a corruption.
    """
    enough = 80 * MIB_PAGES

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        assert await accepted(guest) & features.PAGE_POISON
        assert guest.vm.balloon.config["poison_val"] == poison_val
        await hold(guest, 128, 8)
        balloon, rss = guest.vm.balloon, resident_bytes()
        before = balloon.counters
        await guest.command("free")
        await until(lambda: balloon.counters.reported_pages - before.reported_pages > enough)
        if poison_val:
            assert balloon.counters.reported_bytes == 0
            assert rss - resident_bytes() < SLACK_BYTES
        else:
            assert rss - resident_bytes() > (enough - 8 * MIB_PAGES) * PAGE_BYTES
        for target_mib in (64, 0):
            await guest.resize_balloon(target_mib * MIB_PAGES)
        await hold(guest, 128, 9)
        assert await intact(guest, 128, 9)
        assert "corruption" not in await guest.shell("dmesg")
        await power_off(guest)

    run_guest(scenario, dialect="standard", append=append, offer=["reporting"])


def test_without_page_poison_a_poisoning_guest_does_not_report(run_guest: RunGuest) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        assert not await accepted(guest) & (features.PAGE_POISON | features.REPORTING)
        await power_off(guest)

    run_guest(
        scenario,
        dialect="standard",
        append="page_poison=1",
        offer=["reporting"],
        withhold=["page-poison"],
    )


# The other dialects.


@pytest.mark.parametrize("dialect", [BITMAP, HYBRID, RANGES], ids=lambda each: each.name)
def test_page_bitmap(run_guest: RunGuest, dialect: Dialect) -> None:
    """These dialects need few requests; the standard dialect needs one for 256 pages."""

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        assert await accepted(guest) == dialect.features.default
        await hold(guest, 180, 10)
        await guest.command("free")
        await hold(guest, 32, 11)
        rss = resident_bytes()
        inflate = await guest.resize_balloon(128 * MIB_PAGES)
        assert rss - resident_bytes() > 120 * MIB
        assert inflate.pages == 128 * MIB_PAGES
        assert inflate.requests < 128 * MIB_PAGES // 256 / 4
        assert await intact(guest, 32, 11)
        await guest.resize_balloon(0)
        assert await intact(guest, 32, 11)
        await power_off(guest)

    run_guest(scenario, dialect=dialect.name)


STOCK = "virtio_balloon.dialect=standard"
"""Makes the patched driver behave as a stock one; the device offers the same features."""


def test_a_stock_driver_finds_no_balloon_in_the_bitmap_dialect(run_guest: RunGuest) -> None:
    """It takes PAGE_BITMAP for FREE_PAGE_HINT, whose queue does not exist: its probe fails."""

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        assert await accepted(guest) & features.FREE_PAGE_HINT
        assert not guest.vm.balloon.running
        assert "failed with error -2" in await guest.shell("dmesg | grep virtio_balloon")
        guest.vm.set_balloon_target(100 * MIB)
        await hold(guest, 180, 12)
        assert await intact(guest, 180, 12)
        assert guest.vm.balloon.counters.inflate.requests == 0
        await power_off(guest)

    run_guest(scenario, dialect="bitmap", append=STOCK)


def test_a_stock_driver_in_the_bitmap_dialect_loses_nothing(run_guest: RunGuest) -> None:
    """With free pages poisoned it takes MISC_VQ for PAGE_POISON, and finds all of its queues.

    It sends PFN arrays, each of which is refused as a whole (see `devices.balloon.bitmap`).
    """

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        assert await accepted(guest) == BITMAP.features.default
        await hold(guest, 64, 13)
        rss = resident_bytes()
        await guest.resize_balloon(100 * MIB_PAGES)
        counters = guest.vm.balloon.counters
        assert counters.inflate.bad_payloads == counters.inflate.requests >= 100
        assert counters.inflate.pages == counters.discarded_bytes == 0
        assert rss - resident_bytes() < SLACK_BYTES
        assert await intact(guest, 64, 13)
        await guest.resize_balloon(0)
        await guest.command("free")
        await hold(guest, 160, 14)
        assert await intact(guest, 160, 14)
        assert "corruption" not in await guest.shell("dmesg")
        await power_off(guest)

    run_guest(scenario, dialect="bitmap", append=f"{STOCK} page_poison=1")


def test_a_bitmap_driver_in_the_standard_dialect_loses_nothing(run_guest: RunGuest) -> None:
    """The converse mismatch: read as PFN arrays, its requests name page 0 twice."""

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        assert await accepted(guest) & features.PAGE_BITMAP
        await hold(guest, 64, 15)
        rss = resident_bytes()
        await guest.resize_balloon(100 * MIB_PAGES)
        counters = guest.vm.balloon.counters
        assert counters.inflate.bad_payloads == counters.inflate.requests > 0
        assert counters.inflate.pages == counters.discarded_bytes == 0
        assert rss - resident_bytes() < SLACK_BYTES
        assert await intact(guest, 64, 15)
        await guest.resize_balloon(0)
        assert await intact(guest, 64, 15)
        await power_off(guest)

    run_guest(
        scenario,
        dialect="standard",
        offer=["free-page-hint"],
        append="virtio_balloon.dialect=bitmap",
    )


@pytest.mark.parametrize(
    ("dialect", "driver"),
    [
        ("hybrid", "ranges"),
        pytest.param("ranges", "bitmap", marks=pytest.mark.long),
        pytest.param("ranges", "hybrid", marks=pytest.mark.long),
        pytest.param("hybrid", "bitmap", marks=pytest.mark.long),
        pytest.param("hybrid", "standard", marks=pytest.mark.long),
        pytest.param("ranges", "standard", marks=pytest.mark.long),
        pytest.param("bitmap", "hybrid", marks=pytest.mark.long),
    ],
)
def test_a_driver_of_another_dialect_gets_no_balloon(
    run_guest: RunGuest, dialect: str, driver: str
) -> None:
    """The device refuses its features, so it sends nothing (VIRTIO 1.2, 3.1.1)."""

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        assert not guest.vm.balloon.running
        assert "device refuses features" in await guest.shell("dmesg | grep virtio")
        guest.vm.set_balloon_target(100 * MIB)
        await hold(guest, 180, 16)
        assert await intact(guest, 180, 16)
        assert guest.vm.balloon.counters.inflate.requests == 0
        await power_off(guest)

    run_guest(scenario, dialect=dialect, append=f"virtio_balloon.dialect={driver}")


def test_a_hybrid_driver_in_the_standard_dialect_is_a_stock_one(run_guest: RunGuest) -> None:
    """The device offers nothing of its dialect, so it sends PFN arrays."""

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        assert await accepted(guest) == features.MUST_TELL_HOST | features.STATS_VQ
        await hold(guest, 64, 17)
        inflate = await guest.resize_balloon(32 * MIB_PAGES)
        assert (inflate.pages, inflate.requests) == (32 * MIB_PAGES, 32)
        await guest.resize_balloon(0)
        assert await intact(guest, 64, 17)
        await power_off(guest)

    run_guest(
        scenario,
        dialect="standard",
        offer=["free-page-hint"],
        append="virtio_balloon.dialect=hybrid",
    )
