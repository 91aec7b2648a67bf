# SPDX-License-Identifier: Apache-2.0
"""Debian's stock kernels: bzImage, modules and an unpatched virtio_balloon.

One boot of each covers all of the balloon's features. The 6.1 cloud kernel runs with the default
options. The others are also offered free page hints and reporting, and run with init_on_alloc=0:
Debian's kernels zero each page that they allocate, which takes half a minute in the emulator. See
`debian_kernels` for the source of the kernels and the contents of their initramfs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from devices.balloon import features
from pyvmm.boot.image_config import config_for_image
from pyvmm.harness.guest_session import GuestSession, guest_session
from pyvmm.machine.exit_result import ExitReason
from pyvmm.memory.rss import resident_bytes
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from tests.kvm import debian_kernels
from tests.kvm.debian_kernels import KERNELS, LONG_KERNELS, StockKernel

pytestmark = pytest.mark.kvm

CLOUD = "6.1-cloud"
TWO_VCPUS = ("6.12", "6.12-rt")
INFLATE_MIB = 512
PATTERN_MIB = 64
STATS_TIMEOUT_S = 60.0
REPORTING_TIMEOUT_S = 120.0


@pytest.mark.parametrize(
    "name", [*KERNELS, *(pytest.param(name, marks=pytest.mark.long) for name in LONG_KERNELS)]
)
def test_the_balloon_of_a_stock_kernel(name: str, figure: Callable[[str], None]) -> None:
    offer = () if name == CLOUD else ("free-page-hint", "reporting")
    kernel = _cached_kernel(name)
    quick = "init_on_alloc=0" if offer else ""
    config = config_for_image(
        kernel.vmlinuz,
        initrd=kernel.initramfs,
        append=f"loglevel=4 {quick}",
        run="uname -r; pattern",
        ram_bytes=1024 * MIB,
        vcpus=2 if name in TWO_VCPUS else 1,
        offer=offer,
        rng=0,
    )
    assert config.dialect == "standard"

    async def main() -> None:
        times = StepTimes()
        async with guest_session(config) as guest:
            await _boot(guest, kernel)
            times.record("boot")
            assert (
                await guest.shell("cat /sys/class/misc/hw_random/rng_current") == "virtio_rng.0\n"
            )
            assert (await guest.command("alloc 600")).startswith("allocated")
            times.record("touch 600 MiB")
            if offer:
                await _check_reporting(guest)
                times.record("report")
            else:
                await guest.command("free")
            await guest.command(f"alloc {PATTERN_MIB}")
            await guest.command("fill 3")
            await _check_inflate(guest, reported=bool(offer))
            times.record("inflate 512 MiB")
            await _check_statistics(guest)
            await guest.resize_balloon(0)
            times.record("deflate")
            if offer:
                await _check_hints(guest)
                times.record("hint")
            await _verify_pattern(guest)
            guest.console.send_line("quit")
            assert (await guest.wait_for_exit()).reason is ExitReason.POWEROFF
            times.record("power off")
            assert guest.vm.balloon.counters.inflate.bad_payloads == 0
            assert guest.vm.balloon.counters.deflate.bad_payloads == 0
        figure(f"{kernel.version}: {times}")

    asyncio.run(main())


class StepTimes:
    """Durations of the steps of a test, for the table of figures."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._steps: list[str] = []

    def record(self, step: str) -> None:
        now = time.monotonic()
        self._steps.append(f"{step} {now - self._last:.1f}")
        self._last = now

    def __str__(self) -> str:
        return ", ".join(self._steps) + " s"


def _cached_kernel(name: str) -> StockKernel:
    kernel = debian_kernels.cached(name)
    if kernel is None:
        pytest.skip(f"{name} has not been downloaded; run `{debian_kernels.FETCH}` with a network")
    return kernel


@pytest.mark.long
def test_a_stock_kernel_without_acpi_uses_every_vcpu_and_its_balloon() -> None:
    kernel = _cached_kernel("6.1")
    config = config_for_image(
        kernel.vmlinuz,
        initrd=kernel.initramfs,
        append="loglevel=4 init_on_alloc=0 acpi=off",
        run="nproc; pattern; reboot -f",  # without ACPI nothing can power off
        ram_bytes=512 * MIB,
        vcpus=2,
    )

    async def main() -> None:
        async with guest_session(config) as guest:
            await guest.wait_for_user_space()
            assert await guest.expect(r"\n(\d+)\r?\n") == "2"
            moved = await guest.resize_balloon(PATTERN_MIB * MIB // PAGE_BYTES)
            assert moved.pages == PATTERN_MIB * MIB // PAGE_BYTES
            guest.console.send_line("quit")
            assert (await guest.wait_for_exit()).reason is ExitReason.RESET

    asyncio.run(main())


async def _verify_pattern(guest: GuestSession) -> None:
    assert await guest.command("verify 3") == f"verified {PATTERN_MIB * MIB} wrong 0"


async def _boot(guest: GuestSession, kernel: StockKernel) -> None:
    await guest.wait_for_user_space()
    package, _, _ = kernel.version.partition(" ")
    assert await guest.expect(r"\n(\d+\.\d+\S+)\r?\n") == package.removeprefix("linux-image-")
    await guest.command("meminfo")
    balloon = guest.vm.balloon
    assert balloon.running
    # Linux accepts PAGE_POISON only if it poisons free pages; Debian's kernels do not.
    assert balloon.accepted & 0x3F == balloon.offered & 0x3F & ~features.PAGE_POISON


async def _check_reporting(guest: GuestSession) -> None:
    rss_full, before = resident_bytes(), guest.vm.balloon.counters
    await guest.command("free")
    async with asyncio.timeout(REPORTING_TIMEOUT_S):
        while rss_full - resident_bytes() < 500 * MIB:
            await guest.while_running(asyncio.sleep(0.1))
    after = guest.vm.balloon.counters
    assert after.reported_bytes - before.reported_bytes >= 500 * MIB
    assert after.reported_bytes == after.reported_pages * PAGE_BYTES
    assert after.inflate.pages == 0


async def _check_inflate(guest: GuestSession, *, reported: bool) -> None:
    rss_before, free_before = resident_bytes(), await guest.free_bytes()
    moved = await guest.resize_balloon(INFLATE_MIB * MIB // PAGE_BYTES)
    assert moved.pages == INFLATE_MIB * MIB // PAGE_BYTES
    assert guest.vm.balloon.counters.discarded_bytes == INFLATE_MIB * MIB
    if not reported:  # reporting has freed this memory before
        assert rss_before - resident_bytes() > 0.95 * INFLATE_MIB * MIB
    taken = free_before - await guest.free_bytes()
    assert abs(taken - INFLATE_MIB * MIB) < 32 * MIB
    await _verify_pattern(guest)


async def _check_statistics(guest: GuestSession) -> None:
    report = (await guest.vm.balloon_statistics.fresh(STATS_TIMEOUT_S)).report
    words = (await guest.command("meminfo")).split()
    meminfo = {words[i]: int(words[i + 1]) * 1024 for i in range(0, len(words), 2)}
    stats = report.known
    assert stats["stat-total-memory"] == meminfo["total_kib"]
    assert abs((stats["stat-free-memory"] or 0) - meminfo["free_kib"]) < 16 * MIB
    assert abs((stats["stat-available-memory"] or 0) - meminfo["available_kib"]) < 16 * MIB
    assert stats["stat-major-faults"] is not None
    assert not report.unknown


async def _check_hints(guest: GuestSession) -> None:
    free = await guest.free_bytes()
    async with guest.vm.free_page_hints.held(timeout_s=REPORTING_TIMEOUT_S) as hints:
        assert hints.complete
        hinted = hints.pages.pages * PAGE_BYTES
        assert 0.5 * free < hinted <= guest.vm.ram_bytes
        assert (
            await guest.free_bytes() < free - hinted + 64 * MIB
        )  # the driver keeps hinted pages allocated
    async with asyncio.timeout(REPORTING_TIMEOUT_S):
        while await guest.free_bytes() < free - 64 * MIB:
            await guest.while_running(asyncio.sleep(0.1))


@pytest.mark.parametrize(
    ("append", "reason"),
    [
        pytest.param("rdinit=/none init=/none", ExitReason.PANIC, id="panic"),
        pytest.param(
            'pyvmm.run="reboot -f"', ExitReason.RESET, id="reboot", marks=pytest.mark.long
        ),
    ],
)
def test_a_panic_of_a_stock_kernel_differs_from_a_reboot(append: str, reason: ExitReason) -> None:
    kernel = _cached_kernel(CLOUD)
    initrd = kernel.initramfs if reason is ExitReason.RESET else None
    config = config_for_image(
        kernel.vmlinuz, initrd=initrd, append=f"loglevel=4 {append}", ram_bytes=256 * MIB
    )

    async def main() -> None:
        async with guest_session(config) as guest:
            result = await guest.wait_for_exit()
            assert result.reason is reason, guest.console.text[-2000:]

    asyncio.run(main())
