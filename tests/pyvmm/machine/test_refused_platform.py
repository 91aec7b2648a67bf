# SPDX-License-Identifier: Apache-2.0
"""A platform that KVM refuses releases what it has created, and so does a machine.

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
from pyvmm.machine.catalogue import CATALOGUE
from pyvmm.machine.errors import PlatformNotCreated, TooManyOpenFiles
from pyvmm.machine.kvm_setup import KvmSetup, make_ram
from pyvmm.machine.machine import Machine
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


def create(setup: KvmSetup | None = None, config: MachineConfig = CONFIG) -> Platform:
    queue = ByteQueue(lambda: None, 4096)
    return Platform(config, console_output=queue, tracer=LogTracer(), setup=setup)


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


def allow_eventfds(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Refuse all eventfds after the first `count`."""
    make, left = os.eventfd, list(range(count))

    def eventfd(*arguments: int) -> int:
        if not left:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        left.pop()
        return make(*arguments)

    monkeypatch.setattr(os, "eventfd", eventfd)


@pytest.mark.parametrize("eventfds", [0, 1, 3])  # of the balloon: none, some, all
def test_a_machine_that_is_refused_releases_its_platform(
    kvm: RefusingKvm, monkeypatch: pytest.MonkeyPatch, eventfds: int
) -> None:
    before = descriptors()
    allow_eventfds(monkeypatch, eventfds)
    platform = create(config=CONFIG.changed(rng=0))
    with pytest.raises(TooManyOpenFiles):
        Machine(platform)
    assert platform.vm.closed
    assert descriptors() <= before


def test_two_devices_in_one_slot_leave_nothing(kvm: RefusingKvm) -> None:
    balloon, rng, *_ = CATALOGUE
    before = descriptors()
    platform = create(config=CONFIG.changed(rng=0))
    with pytest.raises(ValueError, match="is taken"):
        Machine(platform, devices=[balloon, rng._replace(slot=balloon.slot)])
    assert descriptors() <= before


def test_a_started_platform_stays_the_callers(
    kvm: RefusingKvm, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = create()
    platform.started = True
    before = descriptors()
    allow_eventfds(monkeypatch, 1)
    with platform.lock, pytest.raises(TooManyOpenFiles):
        Machine(platform)
    assert not platform.vm.closed
    assert descriptors() == before
    platform.close()
