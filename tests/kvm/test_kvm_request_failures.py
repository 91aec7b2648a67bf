# SPDX-License-Identifier: Apache-2.0
"""Requests that KVM refuses, one after the other: each is named in one line, without a traceback.

`test_machine_creation` has those that create a machine; here are those that save, restore and run
one. Its guest is a few instructions, so that each attempt takes milliseconds.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pykvm import KvmError, KvmHandle, ioctls
from pyvmm.boot.loader import read_boot_files
from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.machine.catalogue import part_kinds
from pyvmm.machine.exit_result import ExitReason
from pyvmm.machine.machine import Machine
from pyvmm.machine.platform import Platform
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.restore import restore
from pyvmm.snapshot.saver import SnapshotRequest, SnapshotStatus
from pyvmm.trace.logging import LogTracer
from pyvmm.units import MIB
from pyvmm.vm import VirtualMachine
from pyvmm_native.serial import ByteQueue
from tests.pyvmm.boot.elf_kernel import elf_kernel

pytestmark = pytest.mark.kvm

LOOP = b"\xeb\xfe"
"""jmp to itself."""
OPTIONAL = {ioctls.KVM_KVMCLOCK_CTRL}
"""Requests that KVM may refuse for reasons of the guest; their failure is ignored."""


class Requests:
    """Counts the requests to KVM from `begin` on, and fails the one numbered `fail_at`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = KvmHandle._ioctl_once

        def counted(handle: KvmHandle, request: int, argument: Any = 0) -> int:
            if self._counting:
                self.made.append(request)
                if len(self.made) - 1 == self._fail_at:
                    return -errno.ENOMEM
            return real(handle, request, argument)

        monkeypatch.setattr(KvmHandle, "_ioctl_once", counted)
        self.made: list[int] = []
        self._counting = False
        self._fail_at = -1

    def begin(self, fail_at: int) -> None:
        self.made, self._counting, self._fail_at = [], True, fail_at

    def end(self) -> None:
        self._counting = False


def fail_each(attempt: Callable[[int], str], requests: Requests) -> int:
    """Check that a request of an `attempt` that fails is named in the text that it returns.

    The first request of each kind fails in an attempt of its own; the argument is its number, -1
    for none. Returns the number of kinds.
    """
    assert attempt(-1) == ""
    kinds = dict.fromkeys(requests.made)
    for index in [requests.made.index(request) for request in kinds]:
        text = attempt(index)
        # A copy may need fewer rounds than the first attempt.
        if index >= len(requests.made) or requests.made[index] in OPTIONAL:
            assert text == ""
        else:
            name = ioctls.name_of(requests.made[index])
            assert f"{name}: Cannot allocate memory (ENOMEM)" in text
            assert "\n" not in text
            assert "bug" not in text
    return len(kinds)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Requests:
    return Requests(monkeypatch)


@pytest.fixture
def config(tmp_path: Path) -> MachineConfig:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(elf_kernel(LOOP))
    return MachineConfig(kernel, None, "", 64 * MIB, 1, "standard")


def create(config: MachineConfig) -> VirtualMachine:
    queue = ByteQueue(lambda: None, 4096)
    return VirtualMachine(Machine(Platform(config, console_output=queue, tracer=LogTracer())))


async def save(config: MachineConfig, path: Path, requests: Requests, fail_at: int) -> str:
    """Take a snapshot of a running machine; return its error."""
    vm = create(config)
    try:
        vm.boot()
        running = asyncio.create_task(vm.run())
        await asyncio.sleep(0.01)
        requests.begin(fail_at)
        vm.snapshots.start(SnapshotRequest(path, ask_unused=False))
        async with asyncio.timeout(30):
            while vm.snapshots.active:
                await asyncio.sleep(0.001)
        requests.end()
        vm.quit()
        await running
    finally:
        vm.close()
    status: SnapshotStatus = vm.snapshots.status
    return status.error


def test_each_kind_of_request_of_a_snapshot_that_fails_is_its_error(
    config: MachineConfig, tmp_path: Path, requests: Requests, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "snapshot"
    made = fail_each(lambda index: asyncio.run(save(config, path, requests, index)), requests)
    assert made > 15
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.long
def test_each_kind_of_request_of_a_restore_that_fails_is_one_line(
    config: MachineConfig, tmp_path: Path, requests: Requests
) -> None:
    path = tmp_path / "snapshot"
    assert asyncio.run(save(config, path, requests, -1)) == ""

    async def attempt(fail_at: int) -> str:
        with SnapshotFile(path, part_kinds()) as snapshot:
            vm = create(snapshot.config)
            try:
                requests.begin(fail_at)
                restore(snapshot, vm)
            except UserError as error:
                return str(error)
            finally:
                requests.end()
                vm.close()
            return ""

    assert fail_each(lambda index: asyncio.run(attempt(index)), requests) > 15


@pytest.mark.parametrize("where", ["vCPU", "event loop"])
def test_a_request_that_fails_while_the_guest_runs_ends_the_vm_as_a_crash(
    config: MachineConfig, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = KvmError("KVM_SET_GSI_ROUTING", errno.ENOMEM)

    def fail(*_: object) -> bool:
        raise error

    async def main() -> None:
        vm = create(config)
        try:
            vm.machine.boot(read_boot_files(config))
            running = asyncio.create_task(vm.run())
            await asyncio.sleep(0.01)
            if where == "vCPU":
                monkeypatch.setattr("pyvmm_native.kvm_run.run", fail)
                vm.pause()
                vm.resume()
            else:
                device = vm.machine.pci_devices["balloon"]
                monkeypatch.setattr(device.transport, "serve_queue", fail)
                device._serve_queue(0)
            async with asyncio.timeout(20):
                result = await running
        finally:
            vm.close()
        assert result.reason is ExitReason.CRASH
        assert result.exit_status == 1
        assert result.detail == (
            "a request to KVM has failed: KVM_SET_GSI_ROUTING: Cannot allocate memory (ENOMEM)"
        )

    asyncio.run(main())
