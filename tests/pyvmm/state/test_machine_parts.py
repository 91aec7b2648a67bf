# SPDX-License-Identifier: Apache-2.0
"""The parts of a machine as records: all of them, in order, and no other ones.

Any KVM suffices, even one that cannot run Linux.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from devices.legacy.acpi_pm import AcpiPm
from devices.registers import Register, RegisterTable
from devices.state import StateError
from pykvm import Vcpu, abi
from pyvmm.state.parts import PLATFORM_KINDS, MachineParts
from pyvmm.state.records import Record
from tests.pyvmm.state.tiny_guest import Tiny, fill, tiny

pytestmark = pytest.mark.skipif(not os.access("/dev/kvm", os.W_OK), reason="there is no KVM")


class SmallMachine:
    """Two vCPUs and two devices."""

    def __init__(self, machine: Tiny) -> None:
        self.first = machine.vcpu
        self.second = machine.vm.create_vcpu(1)
        self.pm = AcpiPm(lambda: None, lambda: None)
        self.post = RegisterTable("post", [Register("code", 0, 1)])
        self.parts = MachineParts(
            machine.system,
            machine.vm,
            [self.first, self.second],
            [self.pm, self.post],
            PLATFORM_KINDS,
        )


@contextmanager
def small() -> Iterator[SmallMachine]:
    with tiny() as machine:
        board = SmallMachine(machine)
        yield board
        board.second.close()


@pytest.fixture
def saved() -> list[Record]:
    with tiny() as machine:
        board = SmallMachine(machine)
        fill(machine)
        board.second.set_cpuid2(machine.cpuid)
        board.second.set_regs(abi.kvm_regs(rbx=22, rflags=2))
        board.post.write(0, 1, 0x55)
        records = board.parts.save()
        board.second.close()
    return records


def test_parts_are_saved_in_the_order_in_which_they_are_restored(saved: list[Record]) -> None:
    assert [(record.kind, record.instance, record.version) for record in saved] == [
        ("kvm-vcpu", 0, 1),
        ("kvm-vcpu", 1, 1),
        ("kvm-vm", 0, 1),
        ("acpi_pm", 0, 1),
        ("post", 0, 1),
    ]


def test_each_part_is_restored_from_its_record(saved: list[Record]) -> None:
    with small() as board:
        board.parts.restore(saved)
        assert (board.first.get_regs().rax, board.second.get_regs().rbx) == (1, 22)
        assert board.post.read(0, 1) == 0x55


def test_a_rehearsal_leaves_a_machine_that_can_be_restored(saved: list[Record]) -> None:
    with small() as board:
        board.parts.rehearse()
        board.parts.restore(saved)
        assert (board.first.get_regs().rax, board.second.get_regs().rbx) == (1, 22)
        assert board.post.read(0, 1) == 0x55


def test_a_rehearsed_machine_is_restored_without_querying_its_vcpus_again(
    saved: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    with small() as board:
        board.parts.rehearse()

        def refuse(vcpu: Vcpu) -> abi.kvm_cpuid2:
            raise AssertionError("CPUID is read while the guest is paused")

        monkeypatch.setattr(Vcpu, "get_cpuid2", refuse)
        board.parts.restore(saved)


@pytest.mark.parametrize("missing", range(5))
def test_a_missing_part_is_refused_by_name(saved: list[Record], missing: int) -> None:
    record = saved.pop(missing)
    with small() as board, pytest.raises(StateError) as refused:
        board.parts.restore(saved)
    assert str(refused.value) == f"{record.kind}: number {record.instance} is missing"


def test_a_part_that_the_machine_has_not_is_refused_by_name(saved: list[Record]) -> None:
    vcpu = saved[1]
    third = Record(vcpu.kind, vcpu.version, vcpu.payload, 2)
    with small() as board, pytest.raises(StateError, match="number 2 is not part of this machine"):
        board.parts.restore([*saved, third])
