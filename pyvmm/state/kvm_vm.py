# SPDX-License-Identifier: Apache-2.0
"""State that KVM holds of a machine besides its vCPUs: interrupt controllers, timer, clock.

It is restored after the vCPUs: a pending interrupt of the IO-APIC or an 8259 is delivered at once,
to local APICs that must have been restored. The clock comes last, as KVM derives it from the time
stamp counters, and together with those (see `pyvmm.state.clock`).

kvmclock, the source of the guest's CLOCK_MONOTONIC, continues from its saved value: it never jumps
back, and timers do not notice the time from the save to the restore. KVM could add that time
(KVM_CLOCK_REALTIME), but a guest restored after a week would then find every time-out of the week
expired, and two hosts' wall clocks need not agree. The guest's CLOCK_REALTIME is behind by as much,
and the guest sets it from the RTC or the network, as after a suspend; after a live migration it is
behind by the downtime only.

The i8254's counters restart from their initial counts: KVM reports when they were loaded, in host
time that means nothing on another host, and cannot be given it back.

The level of interrupt lines is not saved. KVM keeps a pin's state but not which device drives it,
so devices assert their lines again.

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
from pyvmm.state.kvm_vcpu import kvm_refusals, structure

if TYPE_CHECKING:
    from pykvm import Vcpu, Vm

KIND = "kvm-vm"
VERSION = 1

MAX_CLOCK_NS = 1 << 62
"""146 years; sums with it must not overflow."""

_CHIPS: tuple[tuple[str, int, str, type[Structure]], ...] = (
    ("pic_master", abi.KVM_IRQCHIP_PIC_MASTER, "pic", abi.kvm_pic_state),
    ("pic_slave", abi.KVM_IRQCHIP_PIC_SLAVE, "pic", abi.kvm_pic_state),
    ("ioapic", abi.KVM_IRQCHIP_IOAPIC, "ioapic", abi.kvm_ioapic_state),
)
"""(name in a payload, KVM's number, member of kvm_irqchip.chip, type of that)"""


def save_vm(vm: Vm, clock_ns: int, tsc: int) -> Payload:
    """Return what KVM holds of `vm`. Raises KvmError.

    The result can be restored only if no vCPU was in the guest meanwhile. `clock_ns` is kvmclock,
    and `tsc` the counter of the boot processor at that moment.
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
    """Restore `vm` after its `vcpus`, whose saved time stamp counters are `counters`.

    StateError for a malformed payload and for values that KVM refuses.
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
    with kvm_refusals(fields.name):
        for chip in chips:
            vm.set_irqchip(chip)
        vm.set_pit2(pit)
        set_clocks(vm, vcpus, clock_ns, clock_tsc, counters)
