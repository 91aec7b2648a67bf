# SPDX-License-Identifier: Apache-2.0
"""A snapshot onto a full disk fails with one line; the one before stays, and the guest runs on.

`test_long_faults` does the same with a Linux guest that verifies its memory, many times.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.config import MachineConfig
from pyvmm.machine.machine import Machine
from pyvmm.machine.platform import Platform
from pyvmm.snapshot.saver import SnapshotRequest, SnapshotStatus
from pyvmm.trace.logging import LogTracer
from pyvmm.units import MIB
from pyvmm.vm import VirtualMachine
from pyvmm_native.serial import ByteQueue
from tests.pyvmm.boot.elf_kernel import elf_kernel

pytestmark = pytest.mark.kvm

COUNTER_GPA = 0x20_0000
COUNT = bytes.fromhex("ff 04 25 00 00 20 00  eb f7")
"""inc dword [COUNTER_GPA]; jmp to it."""
PATTERN_GPA = 16 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a tmpfs of 4 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr}")
    yield path
    subprocess.run(["umount", path], check=True)


async def save(vm: VirtualMachine, path: Path) -> SnapshotStatus:
    vm.snapshots.start(SnapshotRequest(path, ask_unused=False))
    async with asyncio.timeout(30):
        while vm.snapshots.active:
            await asyncio.sleep(0.001)
    return vm.snapshots.status


async def wait_until_counted(vm: VirtualMachine) -> None:
    """Wait until the guest has counted further."""
    before = vm.ram.memory.read(COUNTER_GPA, 4)
    async with asyncio.timeout(30):
        while vm.ram.memory.read(COUNTER_GPA, 4) == before:
            await asyncio.sleep(0.001)


def test_a_snapshot_onto_a_full_disk_leaves_the_one_before_and_the_guest(
    disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kernel, path = tmp_path / "vmlinux", disk / "snapshot"
    kernel.write_bytes(elf_kernel(COUNT))
    config = MachineConfig(kernel, None, "", 64 * MIB, 1, "standard")

    async def main() -> None:
        queue = ByteQueue(lambda: None, 4096)
        vm = VirtualMachine(Machine(Platform(config, console_output=queue, tracer=LogTracer())))
        try:
            vm.boot()
            running = asyncio.create_task(vm.run())
            await wait_until_counted(vm)
            assert (await save(vm, path)).status == "completed"
            former = path.read_bytes()
            vm.ram.memory.write(PATTERN_GPA, b"\x5a" * (8 * MIB))
            for _ in range(2):
                status = await save(vm, path)
                assert status.status == "failed"
                assert status.error == (
                    f"cannot write the snapshot {path}: No space left on device"
                )
                assert path.read_bytes() == former
                assert list(disk.iterdir()) == [path]
                assert vm.status == "running"
                await wait_until_counted(vm)
            subprocess.run(["mount", "-o", "remount,size=32m", disk], check=True)
            status = await save(vm, path)
            assert status.status == "completed", status.error
            assert path.stat().st_size > 8 * MIB
            await wait_until_counted(vm)
            vm.quit()
            await running
        finally:
            vm.close()

    asyncio.run(main())
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
