# SPDX-License-Identifier: Apache-2.0
"""What KVM holds of a machine beside its vCPUs: interrupt controllers, timer, clock.

Restored after the vCPUs: an interrupt that waits in the IO-APIC or an 8259 is delivered at once, to
local APICs which must be those that were saved. The clock comes last of all, as KVM derives it from
the time stamp counters, and together with those (see `pyvmm.state.clock`).

kvmclock, from which a guest makes CLOCK_MONOTONIC, goes on from where it stopped: it never jumps
back, and timers see nothing of the time from the save to the restore. KVM could add that time
(KVM_CLOCK_REALTIME), but a guest that slept in a file for a week would then find every time-out of
the week expired, and two hosts' wall clocks need not agree. The guest's CLOCK_REALTIME is behind by
as much, for the guest to set from the RTC or the network, as after a suspend; a live migration
costs it no more than the downtime.

The i8254's counters begin anew from their counts: KVM gives out when they were loaded, in host time
that means nothing elsewhere, and does not take it back.

What drives the level of an interrupt line is not in here. KVM keeps a pin's state and forgets whose
it was, so devices raise their lines again.

KVM API: KVM_GET_IRQCHIP (4.26), KVM_GET_CLOCK (4.29), KVM_GET_PIT2 (4.72) and their opposites,
Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure
from typing import TYPE_CHECKING

from devices.state import Fields, Payload
from pykvm import abi
from pyvmm.state.clock import set_clocks
from pyvmm.state.kvm_vcpu import refusals, structure

if TYPE_CHECKING:
    from pykvm import Vcpu, Vm

KIND = "kvm-vm"
VERSION = 1

MAX_CLOCK_NS = 1 << 62
"""146 years; what is added to it must not overflow."""

_CHIPS: tuple[tuple[str, int, str, type[Structure]], ...] = (
    ("pic_master", abi.KVM_IRQCHIP_PIC_MASTER, "pic", abi.kvm_pic_state),
    ("pic_slave", abi.KVM_IRQCHIP_PIC_SLAVE, "pic", abi.kvm_pic_state),
    ("ioapic", abi.KVM_IRQCHIP_IOAPIC, "ioapic", abi.kvm_ioapic_state),
)
"""Name in a payload, KVM's number, member of kvm_irqchip.chip, and its type."""


def save_vm(vm: Vm, clock_ns: int, tsc: int) -> Payload:
    """Write down what KVM holds of `vm`, whose vCPUs are all outside the guest. Raises KvmError.

    The clock is given, and what the counter of the boot processor was when it was read.
    """
    pit = vm.get_pit2()
    for channel in pit.channels:
        channel.count_load_time = 0
    chips = {
        name: bytes(getattr(vm.get_irqchip(number).chip, member))
        for name, number, member, _ in _CHIPS
    }
    return {**chips, "pit2": bytes(pit), "clock_ns": clock_ns, "clock_tsc": tsc}


def restore_vm(vm: Vm, fields: Fields, vcpus: Sequence[Vcpu], counters: Sequence[int]) -> None:
    """Make `vm` what was saved, after its vCPUs, with the time stamp counters that those had.

    StateError for what is malformed and what KVM refuses.
    """
    chips = []
    for name, number, member, kind in _CHIPS:
        chip = abi.kvm_irqchip(chip_id=number)
        setattr(chip.chip, member, structure(fields, name, kind))
        chips.append(chip)
    pit = structure(fields, "pit2", abi.kvm_pit_state2)
    clock_ns = fields.number("clock_ns", below=MAX_CLOCK_NS)
    clock_tsc = fields.number("clock_tsc")
    fields.done()
    with refusals(fields.name):
        for chip in chips:
            vm.set_irqchip(chip)
        vm.set_pit2(pit)
        set_clocks(vm, vcpus, clock_ns, clock_tsc, counters)
