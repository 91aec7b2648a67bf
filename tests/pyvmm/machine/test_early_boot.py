# SPDX-License-Identifier: Apache-2.0
"""A boot begins in threads; its errors are raised where their results are taken."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from pykvm import KvmError, KvmHandle, System, ioctls
from pyvmm.boot.errors import KernelUnusable
from pyvmm.boot.loader import read_boot_files
from pyvmm.config import MachineConfig
from pyvmm.machine.early_boot import EarlyBoot
from pyvmm.machine.errors import PlatformNotCreated
from pyvmm.units import MIB
from tests.pyvmm.boot.elf_kernel import LOAD_GPA, elf_kernel

CODE = b"\xf4" * 5000
INITRD = b"070701" * 1000


@pytest.fixture
def config(tmp_path: Path) -> MachineConfig:
    kernel, initrd = tmp_path / "vmlinux", tmp_path / "initrd"
    kernel.write_bytes(elf_kernel(CODE))
    initrd.write_bytes(INITRD)
    return MachineConfig(kernel, initrd, "", 64 * MIB, 1, "standard")


@pytest.mark.parametrize("first", ["begin", "load"])
def test_ram_has_the_files_which_take_no_other_memory(config: MachineConfig, first: str) -> None:
    boot, files = EarlyBoot(config), read_boot_files(config)
    if first == "begin":
        boot.begin()
    boot.load(files)
    boot.begin()
    boot.begin()
    assert boot.loaded().entry == LOAD_GPA
    ram = boot._ram
    assert ram is not None
    assert ram.memory.read(LOAD_GPA, len(CODE)) == CODE
    assert ram.memory.read(files.initrd_gpa, len(INITRD)) == INITRD
    assert not files.initrd


@pytest.mark.parametrize("begun", [False, True])
def test_a_boot_that_another_process_does_takes_no_memory(
    config: MachineConfig, begun: bool
) -> None:
    boot, files = EarlyBoot(config), read_boot_files(config)
    if begun:
        boot.begin()
    boot.load(files)
    boot.discard()
    assert not files.initrd
    if begun:
        ram = boot._ram
        assert ram is not None
        assert ram.memory.read(LOAD_GPA, len(CODE)) == bytes(len(CODE))


def test_a_kernel_that_cannot_be_read_any_more_is_one_line(config: MachineConfig) -> None:
    boot, files = EarlyBoot(config), read_boot_files(config)
    config.kernel.unlink()
    boot.load(files)
    boot.begin()
    message = f"^cannot read {config.kernel}: No such file or directory$"
    with pytest.raises(KernelUnusable, match=message):
        boot.loaded()


@pytest.mark.parametrize("size_bytes", [0, 4096])
def test_a_kernel_that_has_become_shorter_is_one_line(
    config: MachineConfig, size_bytes: int
) -> None:
    boot, files = EarlyBoot(config), read_boot_files(config)
    os.truncate(config.kernel, size_bytes)
    boot.load(files)
    boot.begin()
    with pytest.raises(KernelUnusable, match=r"it has become shorter since it was checked$"):
        boot.loaded()


@pytest.mark.parametrize("refused", [ioctls.KVM_CREATE_VM, ioctls.KVM_CREATE_PIT2])
def test_a_vm_that_kvm_refuses_is_released_before_the_lab_runs(
    config: MachineConfig, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    """Though the error, with all variables where it was raised, is kept."""

    def answer(handle: KvmHandle, request: int, argument: Any = 0) -> int:
        if request == refused:
            return -errno.ENOMEM
        return os.dup(handle.fileno()) if request == ioctls.KVM_CREATE_VM else 0

    monkeypatch.setattr(KvmHandle, "_ioctl_once", answer)
    monkeypatch.setattr("pyvmm.machine.kvm_setup.System", lambda: System("/dev/null"))
    before = set(os.listdir("/proc/self/fd"))
    boot = EarlyBoot(config)
    boot.begin()
    with pytest.raises(PlatformNotCreated):
        boot.setup()
    boot.discard()
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_request_that_kvm_refuses_is_named(
    config: MachineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(handle: KvmHandle, request: int, argument: Any = 0) -> int:
        return -errno.ENOMEM

    monkeypatch.setattr(KvmHandle, "_ioctl_once", refused)
    monkeypatch.setattr("pyvmm.machine.kvm_setup.System", lambda: System("/dev/null"))
    boot = EarlyBoot(config)
    boot.begin()
    with pytest.raises(PlatformNotCreated) as caught:
        boot.setup()
    name = ioctls.name_of(ioctls.KVM_GET_VCPU_MMAP_SIZE)
    assert str(caught.value) == (
        f"the machine cannot be created: {name}: Cannot allocate memory (ENOMEM)"
    )
    assert isinstance(caught.value.__cause__, KvmError)
