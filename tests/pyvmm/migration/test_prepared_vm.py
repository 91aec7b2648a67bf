# SPDX-License-Identifier: Apache-2.0
"""The VM that a destination creates before its guest arrives.

Any KVM suffices, even one that cannot run Linux.
"""

from __future__ import annotations

import errno
import gc
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from devices.state import Fields, decode
from devices.virtio.status import LIVE
from pykvm import KvmError, Vcpu, Vm, abi
from pyvmm.config import MachineConfig
from pyvmm.machine.errors import MachineNotCreated, PlatformNotCreated
from pyvmm.machine.machine import Machine
from pyvmm.machine.platform import Platform
from pyvmm.memory.errors import HostMemoryUnavailable
from pyvmm.memory.ram import Ram
from pyvmm.migration import prepared_vm
from pyvmm.migration.prepared_vm import PreparedVm, prepare_vm
from pyvmm.migration.rehearsal_driver import start_drivers
from pyvmm.state.parts import MachineParts
from pyvmm.trace.logging import LogTracer
from pyvmm.units import GIB, MIB
from pyvmm_native.serial import ByteQueue
from tests.pyvmm.migration.migration_guest import config_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyvmm.state.records import Record

needs_kvm = pytest.mark.skipif(not os.access("/dev/kvm", os.W_OK), reason="there is no KVM")
OTHER = config_of(4096).changed(
    vcpus=3, dialect="standard", rng=0, console="virtio", ports=("agent",)
)
"""A guest unlike the small machine, with RAM on both sides of the PCI hole."""


def descriptors() -> Sequence[str]:
    gc.collect()
    return sorted(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Check that neither descriptors nor threads are left after a test."""
    fds, threads = descriptors(), threading.enumerate()
    yield
    assert (descriptors(), threading.enumerate()) == (fds, threads)


NONE = PreparedVm(None)


def machine_of(config: MachineConfig, prepared: PreparedVm = NONE) -> Machine:
    output = ByteQueue(lambda: None, 1 << 20)
    with prepared.taken(config) as setup:
        platform = Platform(config, console_output=output, tracer=LogTracer(), setup=setup)
    return Machine(platform)


def is_there(prepared: PreparedVm) -> bool:
    """Take the VM, if it is still there, and release it."""
    with prepared.taken(config_of(64)) as setup:
        if setup is not None:
            setup.close()
    return setup is not None


def saved(config: MachineConfig, *, drivers: bool = False) -> list[Record]:
    """Return the parts of a guest, perhaps with drivers, whose last vCPU has 22 in a register."""
    with closing(machine_of(config)) as source:
        source.prepare_incoming()
        if drivers:
            start_drivers(source)
        source.vcpu_threads[-1].vcpu.set_regs(abi.kvm_regs(rbx=22, rflags=2))
        return source.save_parts()


def restored_parts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Record]]:
    """Return a list to which each `MachineParts.restore` adds its records, by kind."""
    all_parts: list[dict[str, Record]] = []
    restore = MachineParts.restore

    def observed(parts: MachineParts, records: Iterable[Record]) -> None:
        given = list(records)
        all_parts.append({record.kind: record for record in given})
        restore(parts, given)

    monkeypatch.setattr(MachineParts, "restore", observed)
    return all_parts


@needs_kvm
@pytest.mark.parametrize("config", [config_of(64), OTHER], ids=["small", "other"])
def test_the_first_guest_is_restored_in_the_vm_with_its_own_ram(config: MachineConfig) -> None:
    records = saved(config)
    with closing(prepare_vm()) as prepared, closing(machine_of(config, prepared)) as machine:
        assert not is_there(prepared)
        assert machine.ram.size_bytes == config.ram_bytes
        assert len({thread.vcpu.fileno() for thread in machine.vcpu_threads}) == config.vcpus
        machine.prepare_incoming()
        assert all(thread.is_alive() for thread in machine.vcpu_threads)
        machine.restore_parts(records)
        assert machine.vcpu_threads[-1].vcpu.get_regs().rbx == 22
        machine.start(paused=True)
        assert machine.gate.wait_until_empty(0)
        again = machine.save_parts()
    assert [record.kind for record in again] == [record.kind for record in records]
    going_on = ("kvm-vcpu", "kvm-vm", "rtc")  # counters, clock and time
    assert [record for record in again if record.kind not in going_on] == [
        record for record in records if record.kind not in going_on
    ]


@needs_kvm
def test_a_small_machine_is_rehearsed_and_its_vm_is_not_queried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    restored = restored_parts(monkeypatch)
    with closing(prepare_vm()) as prepared:
        assert len(restored) == 2
        for parts in restored:
            assert {"kvm-vcpu", "kvm-vm", "virtio_balloon"} <= parts.keys()
        config = config_of(64)
        with closing(machine_of(config, prepared)) as machine:

            def refuse(vcpu: Vcpu) -> abi.kvm_cpuid2:
                raise AssertionError("CPUID is read while a source waits")

            with monkeypatch.context() as patches:
                patches.setattr(Vcpu, "get_cpuid2", refuse)
                machine.prepare_incoming()
            assert len(restored) == 2


@needs_kvm
def test_the_rehearsal_restores_devices_that_drivers_use(monkeypatch: pytest.MonkeyPatch) -> None:
    restored = restored_parts(monkeypatch)
    with closing(prepare_vm()):
        pass
    balloon = Fields("virtio_balloon", decode(restored[-1]["virtio_balloon"].payload))
    device, interrupts = balloon.part("device"), balloon.part("interrupts")
    assert device.number("status") == LIVE
    queues = device.parts("queues")
    assert queues
    assert all(queue.numbers("indices") == [0, 0] for queue in queues)
    assert interrupts.numbers("queue_vectors") == [*range(1, 1 + len(queues))]


@needs_kvm
@pytest.mark.parametrize("config", [config_of(64), OTHER], ids=["small", "other"])
def test_a_guest_may_have_the_addresses_of_the_rehearsal(config: MachineConfig) -> None:
    records = saved(config, drivers=True)
    with closing(prepare_vm()) as prepared, closing(machine_of(config, prepared)) as machine:
        machine.prepare_incoming()
        machine.restore_parts(records)
        for device in machine.pci_devices.values():
            assert device.model.running
        assert machine.vcpu_threads[-1].vcpu.get_regs().rbx == 22


@needs_kvm
def test_devices_that_the_small_machine_has_not_are_rehearsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = config_of(64).changed(rng=0)
    with (
        closing(prepare_vm()) as prepared,
        closing(machine_of(config, prepared)) as machine,
    ):
        rehearsed = list[str]()
        for name, device in machine.pci_devices.items():
            restore = device.transport.restore_state

            def observed(fields, name=name, restore=restore):  # type: ignore[no-untyped-def]
                rehearsed.append(name)
                restore(fields)

            monkeypatch.setattr(device.transport, "restore_state", observed)
        machine.prepare_incoming()
        assert rehearsed == ["rng"]


@needs_kvm
def test_a_second_guest_gets_a_vm_of_its_own() -> None:
    config = config_of(64)
    with closing(prepare_vm()) as prepared:
        first = machine_of(config, prepared)
        vm = first.platform.vm
        first.prepare_incoming()
        first.close()  # its source has failed
        assert vm.closed
        with closing(machine_of(config, prepared)) as second:
            second.prepare_incoming()
            second.restore_parts(saved(config))


@needs_kvm
def test_ram_that_cannot_be_mapped_leaves_the_vm(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(config: MachineConfig) -> Ram:
        raise HostMemoryUnavailable("the host cannot map 16384 MiB")

    with closing(prepare_vm()) as prepared:
        with monkeypatch.context() as patches:
            patches.setattr(prepared_vm, "make_ram", refuse)
            with pytest.raises(HostMemoryUnavailable):
                machine_of(config_of(16 * GIB // MIB), prepared)
        assert is_there(prepared)


def refuse_request(*args: object, **named: object) -> None:
    raise KvmError("KVM_REFUSED", errno.ENOMEM)


@needs_kvm
def test_ram_that_kvm_refuses_releases_the_vm(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(prepare_vm()) as prepared:
        monkeypatch.setattr(Vm, "set_user_memory_region", refuse_request)
        with pytest.raises(PlatformNotCreated, match="KVM_REFUSED"):
            machine_of(config_of(64), prepared)
        assert not is_there(prepared)


@needs_kvm
def test_a_vcpu_that_kvm_refuses_releases_the_vm(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(prepare_vm()) as prepared:
        monkeypatch.setattr(Vm, "create_vcpu", refuse_request)
        with pytest.raises(PlatformNotCreated, match="KVM_REFUSED"):
            machine_of(OTHER, prepared)
        assert not is_there(prepared)


@needs_kvm
def test_a_vm_that_kvm_refuses_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vm, "create_vcpu", refuse_request)
    with pytest.raises(PlatformNotCreated, match="KVM_REFUSED"):
        prepare_vm()


@needs_kvm
def test_a_rehearsal_that_is_not_possible_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **named: object) -> Machine:
        raise MachineNotCreated("the machine cannot be created: too many open files")

    monkeypatch.setattr(prepared_vm, "Machine", refuse)
    assert not is_there(prepare_vm())


def test_without_a_vm_there_is_nothing_to_take() -> None:
    prepared = PreparedVm(None)
    assert not is_there(prepared)
    prepared.close()
