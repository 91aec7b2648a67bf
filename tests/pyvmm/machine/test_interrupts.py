# SPDX-License-Identifier: Apache-2.0
"""Interrupt inputs: their routes, and the levels of PCI interrupts."""

from __future__ import annotations

from typing import cast

from pykvm import Vm, abi
from pyvmm.machine.interrupts import InterruptRouter, set_pci_levels
from pyvmm.memory import layout


class ChipsOfVm:
    """The interrupt controllers of a VM, as KVM keeps them."""

    def __init__(self) -> None:
        self.chips = {
            number: abi.kvm_irqchip(chip_id=number)
            for number in (abi.KVM_IRQCHIP_PIC_MASTER, abi.KVM_IRQCHIP_PIC_SLAVE)
        }
        self.routes: list[abi.kvm_irq_routing_entry] = []

    def get_irqchip(self, number: int) -> abi.kvm_irqchip:
        return abi.kvm_irqchip.from_buffer_copy(self.chips[number])

    def set_irqchip(self, chip: abi.kvm_irqchip) -> None:
        self.chips[chip.chip_id] = chip

    def set_gsi_routing(self, routes: list[abi.kvm_irq_routing_entry]) -> None:
        self.routes = routes


def test_the_8259s_take_pci_interrupts_as_levels_and_others_as_edges() -> None:
    vm = ChipsOfVm()
    set_pci_levels(cast("Vm", vm))
    master, slave = (vm.chips[number].chip.pic.elcr for number in sorted(vm.chips))
    levels = {irq for irq in range(16) if (master | slave << 8) >> irq & 1}
    assert levels == set(layout.PCI_INTX_GSIS) == {5, 10, 11}


def test_every_pci_interrupt_reaches_both_kinds_of_controller() -> None:
    vm = ChipsOfVm()
    InterruptRouter(cast("Vm", vm))
    for gsi in map(layout.intx_gsi, range(32)):
        pins = {
            route.u.irqchip.irqchip: route.u.irqchip.pin for route in vm.routes if route.gsi == gsi
        }
        slave = gsi >= 8
        pic = abi.KVM_IRQCHIP_PIC_SLAVE if slave else abi.KVM_IRQCHIP_PIC_MASTER
        assert pins == {abi.KVM_IRQCHIP_IOAPIC: gsi, pic: gsi % 8}
