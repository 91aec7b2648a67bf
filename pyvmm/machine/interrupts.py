# SPDX-License-Identifier: Apache-2.0
"""Interrupt routing from device models to the guest's interrupt controllers in KVM.

KVM numbers interrupt inputs as GSIs. The first 24 are the pins of the IO-APIC (and, up to 15, of
the two 8259s); from `layout.FIRST_MSI_GSI` on, each GSI stands for one MSI-X vector and carries
its message. The whole table goes to KVM at every change (KVM_SET_GSI_ROUTING replaces it), so one
object keeps it. A vector has an eventfd that KVM turns into its GSI (irqfd): raising an interrupt
is an 8-byte write, from any thread.

The 8259s take interrupts as edges unless their ELCR, a register of PC chipsets, says level. A PC's
firmware sets it for the interrupts of PCI; here `set_pci_levels` does.

KVM API: KVM_SET_GSI_ROUTING (4.52), KVM_IRQFD (4.75), KVM_IRQ_LINE (4.25), KVM_SET_IRQCHIP (4.27).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pykvm import abi, irqchip_route, msi_route
from pyvmm.memory import layout

if TYPE_CHECKING:
    from pykvm import Vm

PIC_PINS = 8


class InterruptRouter:
    """The routing table of a virtual machine; its methods are called with the device lock held."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self._fixed = _pin_routes()
        self._messages: dict[int, tuple[int, int]] = {}
        self._next_gsi = layout.FIRST_MSI_GSI
        self._deferred = False
        self._changed = False
        """KVM does not know all messages yet."""
        self._unattached: list[tuple[int, int]] = []
        self._commit()

    def allocate_gsi(self) -> int:
        """Allocate a GSI for one message-signalled vector."""
        gsi = self._next_gsi
        self._next_gsi += 1
        return gsi

    def set_message(self, gsi: int, address: int, data: int) -> None:
        """Make `gsi` send the MSI message (address, data)."""
        if self._messages.get(gsi) != (address, data):
            self._messages[gsi] = (address, data)
            self._changed = True
            if not self._deferred:
                self._commit()

    def attach(self, event: int, gsi: int) -> None:
        """Make writes to the eventfd `event` raise `gsi`."""
        if self._deferred:
            self._unattached.append((event, gsi))
        else:
            self.vm.irqfd(event, gsi)

    @contextmanager
    def one_change(self) -> Iterator[None]:
        """Pass all changes in the block to KVM at its end, as one, for a guest that does not run.

        Eventfds are attached after that: KVM raises what was written to them before, and by then
        it knows the message.
        """
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self._changed:
            self._commit()
        while self._unattached:
            self.vm.irqfd(*self._unattached.pop())

    def _commit(self) -> None:
        messages = [msi_route(gsi, *message) for gsi, message in self._messages.items()]
        self.vm.set_gsi_routing([*self._fixed, *messages])
        self._changed = False


def _pin_routes() -> list[abi.kvm_irq_routing_entry]:
    """Return the routes of the pins: GSI n is pin n of IO-APIC and 8259s, except for the timer."""
    routes = []
    for gsi in range(layout.FIRST_MSI_GSI):
        if gsi < PIC_PINS:
            routes.append(irqchip_route(gsi, abi.KVM_IRQCHIP_PIC_MASTER, gsi))
        elif gsi < 2 * PIC_PINS:
            routes.append(irqchip_route(gsi, abi.KVM_IRQCHIP_PIC_SLAVE, gsi - PIC_PINS))
        if gsi == layout.PIT_GSI:
            routes.append(irqchip_route(gsi, abi.KVM_IRQCHIP_IOAPIC, layout.PIT_IOAPIC_PIN))
        elif gsi != layout.PIT_IOAPIC_PIN:
            routes.append(irqchip_route(gsi, abi.KVM_IRQCHIP_IOAPIC, gsi))
    return routes


def set_pci_levels(vm: Vm) -> None:
    """Make the 8259s take the interrupts of INTx as levels."""
    for number, first in ((abi.KVM_IRQCHIP_PIC_MASTER, 0), (abi.KVM_IRQCHIP_PIC_SLAVE, PIC_PINS)):
        chip = vm.get_irqchip(number)
        for gsi in layout.PCI_INTX_GSIS:
            if first <= gsi < first + PIC_PINS:
                chip.chip.pic.elcr |= 1 << gsi - first
        vm.set_irqchip(chip)


class GsiLine:
    """A level-triggered interrupt input; satisfies `devices.ports.InterruptLine`."""

    def __init__(self, vm: Vm, gsi: int) -> None:
        self._vm = vm
        self._gsi = gsi
        self._level = False

    def set_level(self, level: bool) -> None:
        if level != self._level:
            self._level = level
            self._vm.irq_line(self._gsi, int(level))


class MsiVectors:
    """The MSI-X vectors of one PCI function; satisfies `devices.ports.MsiSink`."""

    def __init__(self, router: InterruptRouter, count: int) -> None:
        self._router = router
        self._gsis = [router.allocate_gsi() for _ in range(count)]
        self._events: dict[int, int] = {}

    def route(self, vector: int, address: int, data: int) -> None:
        gsi = self._gsis[vector]
        self._router.set_message(gsi, address, data)
        if vector not in self._events:
            event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._router.attach(event, gsi)
            self._events[vector] = event

    def trigger(self, vector: int) -> None:
        os.eventfd_write(self._events[vector], 1)

    def close(self) -> None:
        for event in self._events.values():
            os.close(event)
        self._events.clear()
