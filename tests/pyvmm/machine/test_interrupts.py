# SPDX-License-Identifier: Apache-2.0
"""Interrupt inputs as they are given to KVM: routes, levels of PCI interrupts, and eventfds."""

from __future__ import annotations

import os
from typing import cast

from pykvm import Vm, abi
from pyvmm.machine.interrupts import GsiLine, InterruptRouter, MsiVectors, set_pci_levels
from pyvmm.memory import layout
from pyvmm.memory.layout import FIRST_MSI_GSI
from tests.pyvmm.machine.recording_vm import RecordingVm

PIN, MSI = abi.KVM_IRQ_ROUTING_IRQCHIP, abi.KVM_IRQ_ROUTING_MSI
MASTER, SLAVE, IOAPIC = (
    abi.KVM_IRQCHIP_PIC_MASTER,
    abi.KVM_IRQCHIP_PIC_SLAVE,
    abi.KVM_IRQCHIP_IOAPIC,
)
MESSAGE = (0xFEE0_1000 | 1 << 40, 0x41)


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


def test_pins_are_wired_as_in_a_pc() -> None:
    """GSIs 0 to 15 go to the 8259s; all but the timer go to the IO-APIC's pin of that number."""
    recording = RecordingVm()
    InterruptRouter(recording.vm)
    assert sorted(recording.routes) == sorted(
        [
            *((PIN, gsi, MASTER, gsi) for gsi in range(8)),
            *((PIN, gsi, SLAVE, gsi - 8) for gsi in range(8, 16)),
            (PIN, 0, IOAPIC, 2),
            *((PIN, gsi, IOAPIC, gsi) for gsi in range(24) if gsi not in (0, 2)),
        ]
    )


def test_a_message_is_routed_beside_the_pins_and_only_when_it_changes() -> None:
    recording = RecordingVm()
    router = InterruptRouter(recording.vm)
    pins = list(recording.routes)
    gsis = [router.allocate_gsi() for _ in range(3)]
    assert gsis == [FIRST_MSI_GSI, FIRST_MSI_GSI + 1, FIRST_MSI_GSI + 2]
    router.set_message(gsis[1], *MESSAGE)
    assert recording.routes == [*pins, (MSI, gsis[1], *MESSAGE)]
    tables = recording.tables
    router.set_message(gsis[1], *MESSAGE)
    assert recording.tables == tables
    router.set_message(gsis[1], MESSAGE[0], 0x42)
    assert recording.routes == [*pins, (MSI, gsis[1], MESSAGE[0], 0x42)]


def test_a_restore_sets_all_messages_at_once_and_then_attaches_the_eventfds() -> None:
    recording = RecordingVm()
    router = InterruptRouter(recording.vm)
    vectors = MsiVectors(router, 3)
    tables = recording.tables
    with router.one_change():
        for vector in range(3):
            vectors.route(vector, *MESSAGE)
        vectors.trigger(1)
        assert (recording.tables, recording.irqfds) == (tables, {})
    assert recording.tables == tables + 1
    gsis = [FIRST_MSI_GSI + vector for vector in range(3)]
    assert recording.routes[-3:] == [(MSI, gsi, *MESSAGE) for gsi in gsis]
    assert sorted(recording.irqfds) == gsis
    assert os.eventfd_read(recording.irqfds[gsis[1]]) == 1
    vectors.close()


def test_a_line_reports_changes_of_its_level_only() -> None:
    recording = RecordingVm()
    line = GsiLine(recording.vm, 4)
    for level in (False, True, True, False, False):
        line.set_level(level)
    assert recording.levels == [(4, 1), (4, 0)]


def test_each_vector_has_one_eventfd_for_all_of_its_messages() -> None:
    recording = RecordingVm()
    router = InterruptRouter(recording.vm)
    first, second = MsiVectors(router, 2), MsiVectors(router, 1)
    first.route(1, *MESSAGE)
    second.route(0, *MESSAGE)
    assert set(recording.irqfds) == {FIRST_MSI_GSI + 1, FIRST_MSI_GSI + 2}
    event = recording.irqfds[FIRST_MSI_GSI + 1]
    first.route(1, MESSAGE[0], 0x42)
    assert recording.irqfds[FIRST_MSI_GSI + 1] == event
    assert (MSI, FIRST_MSI_GSI + 1, MESSAGE[0], 0x42) in recording.routes
    first.trigger(1)
    first.trigger(1)
    assert os.eventfd_read(event) == 2
    assert not os.get_blocking(event)
    first.close()
    second.close()
    assert not os.path.exists(f"/proc/self/fd/{event}")


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
