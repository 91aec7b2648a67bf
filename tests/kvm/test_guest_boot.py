# SPDX-License-Identifier: Apache-2.0
"""Boot Linux with several numbers of vCPUs and sizes of RAM, and end it in each way."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.boot.image_config import config_for_image
from pyvmm.boot.linux64 import place_initrd
from pyvmm.files.cpio import cpio
from pyvmm.harness.guest_session import GuestSession, guest_session
from pyvmm.machine.exit_result import ExitReason
from pyvmm.units import MIB
from tests.kvm.fixture_types import RunGuest
from tests.pyvmm.boot.bzimage_kernel import TOOLS

pytestmark = pytest.mark.kvm


@pytest.mark.parametrize("memory_mib", [64, 1024, 8192])
@pytest.mark.parametrize("vcpus", [1, 4])
def test_linux_boots(
    run_guest: RunGuest, figure: Callable[[str], None], vcpus: int, memory_mib: int
) -> None:
    begin = time.monotonic()

    async def scenario(guest: GuestSession) -> None:
        guest_s = await guest.wait_for_user_space()
        figure(
            f"boot {vcpus} vCPU {memory_mib:5} MiB: first user-space line {guest_s} s after the "
            f"kernel's first, {time.monotonic() - begin:.1f} s after the machine was created"
        )
        assert int(await guest.expect(r"processors (\d+)\s")) == vcpus
        total_kib = int(await guest.expect(r"total_kib (\d+)\s"))
        assert 0.7 * memory_mib < total_kib / 1024 <= memory_mib
        assert (await guest.wait_for_exit()).reason is ExitReason.POWEROFF

    command = "echo processors $(nproc); pattern meminfo"
    run_guest(scenario, command, memory_mib=memory_mib, vcpus=vcpus)


def test_a_reboot_ends_the_machine_with_status_0(run_guest: RunGuest) -> None:
    async def scenario(guest: GuestSession) -> None:
        outcome = await guest.wait_for_exit()
        assert outcome.reason is ExitReason.RESET
        assert outcome.exit_status == 0

    run_guest(scenario, "reboot -f")


def test_a_panic_is_reported_as_a_failure(guest_image: Path) -> None:
    config = config_for_image(guest_image, append="rdinit=/none init=/none", ram_bytes=256 * MIB)

    async def main() -> None:
        async with guest_session(config) as guest:
            outcome = await guest.wait_for_exit()
            assert outcome.reason is ExitReason.PANIC
            assert outcome.exit_status == 1
            assert "Kernel panic" in guest.console.text

    asyncio.run(main())


def test_an_additional_initramfs_is_unpacked(run_guest: RunGuest, tmp_path: Path) -> None:
    archive = tmp_path / "extra.cpio"
    archive.write_bytes(cpio({"greeting": b"hello from the second archive\n"}))

    async def scenario(guest: GuestSession) -> None:
        await guest.expect("hello from the second archive")
        assert (await guest.wait_for_exit()).reason is ExitReason.POWEROFF

    run_guest(scenario, "cat /greeting", initrd=archive)


def test_an_initramfs_of_every_compression_is_unpacked(run_guest: RunGuest, tmp_path: Path) -> None:
    archives = b""
    names = sorted(TOOLS, key="lz4".__eq__)  # last, because it has no mark of its end
    for name in names:
        whole = cpio({name: b""})
        # As initramfs-tools does; a kernel's payload has a filter and a larger window.
        command = ("xz", "--check=crc32") if name == "xz" else TOOLS[name]
        packed = subprocess.run(command, input=whole, capture_output=True, check=True).stdout
        archives += packed + bytes(-len(packed) % 4)
    archive = tmp_path / "extra.cpio"
    archive.write_bytes(archives)

    async def scenario(guest: GuestSession) -> None:
        found = await guest.expect(r"unpacked:([^\r\n]*)\r")
        assert sorted(found.split()) == sorted(names)

    run_guest(scenario, f"echo unpacked: $(cd / && ls -d {' '.join(names)})", initrd=archive)


def test_a_paused_guest_does_not_run(run_guest: RunGuest) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.expect("tick 3")
        guest.vm.pause()
        assert guest.vm.status == "paused"
        frozen = guest.console.text
        await asyncio.sleep(1.0)  # many ticks
        assert guest.console.text == frozen
        guest.vm.resume()
        await guest.expect("tick")
        guest.vm.quit()
        assert (await guest.wait_for_exit()).reason is ExitReason.QUIT

    run_guest(scenario, "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.1; done")


def test_spinning_vcpus_stop_promptly(run_guest: RunGuest) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.expect("spinning")
        begin = time.monotonic()
        guest.vm.quit()
        await guest.wait_for_exit()
        guest.vm.close()
        assert not any(thread.is_alive() for thread in guest.vm.machine.vcpu_threads)
        assert time.monotonic() - begin < 10

    spin = "for n in 1 2 3; do (while :; do :; done) & done; echo spinning; while :; do :; done"
    run_guest(scenario, spin, vcpus=4)


def test_the_initrd_is_placed_at_the_end_of_ram() -> None:
    assert place_initrd(5000, 32 * MIB, 64 * MIB) == 64 * MIB - 8192
