# SPDX-License-Identifier: Apache-2.0
"""A platform that KVM refuses releases what it has created.

At once, although the error, with all variables where it was raised, is kept.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pykvm import KvmHandle, System, ioctls
from pyvmm.config import MachineConfig
from pyvmm.machine.errors import PlatformNotCreated
from pyvmm.machine.kvm_setup import KvmSetup, make_ram
from pyvmm.machine.platform import Platform
from pyvmm.trace.logging import LogTracer
from pyvmm.units import MIB
from pyvmm_native.serial import ByteQueue

CONFIG = MachineConfig(Path(), None, "", 64 * MIB, 3, "standard")
RUN_AREA_BYTES = 4096


class RefusingKvm:
    """Creates VMs and vCPUs that are no more than descriptors, and refuses one request."""

    def __init__(self) -> None:
        self.refused = (0, 0)
        """The request and its argument."""
        self.run_area_bytes = RUN_AREA_BYTES
        self._run_area = os.memfd_create("vcpu")
        os.ftruncate(self._run_area, RUN_AREA_BYTES)

    def answer(self, handle: KvmHandle, request: int, argument: Any = 0) -> int:
        if (request, argument) == self.refused:
            return -errno.ENOMEM
        if request == ioctls.KVM_GET_VCPU_MMAP_SIZE:
            return self.run_area_bytes
        if request == ioctls.KVM_CREATE_VM:
            return os.dup(handle.fileno())
        return os.dup(self._run_area) if request == ioctls.KVM_CREATE_VCPU else 0

    def close(self) -> None:
        os.close(self._run_area)


@pytest.fixture
def kvm(monkeypatch: pytest.MonkeyPatch) -> Iterator[RefusingKvm]:
    kvm = RefusingKvm()
    monkeypatch.setattr(KvmHandle, "_ioctl_once", lambda *request: kvm.answer(*request))
    monkeypatch.setattr("pyvmm.machine.kvm_setup.System", lambda: System("/dev/null"))
    yield kvm
    kvm.close()


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def create(setup: KvmSetup | None = None) -> Platform:
    queue = ByteQueue(lambda: None, 4096)
    return Platform(CONFIG, console_output=queue, tracer=LogTracer(), setup=setup)


@pytest.mark.parametrize(
    "refused", [(ioctls.KVM_CREATE_VM, 0), (ioctls.KVM_CREATE_IRQCHIP, 0),
                (ioctls.KVM_CREATE_VCPU, 0), (ioctls.KVM_CREATE_VCPU, 2)]
)  # fmt: skip
def test_its_own_vm_is_released(
    kvm: RefusingKvm, monkeypatch: pytest.MonkeyPatch, refused: tuple[int, int]
) -> None:
    freed: list[int] = []
    monkeypatch.setattr("pyvmm.memory.ram.Ram.close", lambda ram: freed.append(ram.size_bytes))
    before = descriptors()
    kvm.refused = refused
    with pytest.raises(PlatformNotCreated, match="ENOMEM"):
        create()
    assert descriptors() <= before
    assert freed


def test_a_vm_that_was_given_is_left_without_vcpus(kvm: RefusingKvm) -> None:
    setup = KvmSetup(make_ram(CONFIG))
    before = descriptors()
    kvm.refused = (ioctls.KVM_CREATE_VCPU, 2)
    with pytest.raises(PlatformNotCreated, match="KVM_CREATE_VCPU"):
        create(setup)
    assert descriptors() <= before
    assert not setup.vm.closed
    setup.close()


def test_a_vcpu_whose_run_area_cannot_be_mapped_is_closed(kvm: RefusingKvm) -> None:
    before = descriptors()
    kvm.run_area_bytes = 2 * RUN_AREA_BYTES  # longer than the file
    with pytest.raises(ValueError, match="mmap length"):
        create()
    assert descriptors() <= before
