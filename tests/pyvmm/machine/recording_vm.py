# SPDX-License-Identifier: Apache-2.0
"""A KVM virtual machine that records interrupts and eventfds instead of using them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from pykvm import Vm, abi


class RecordingVm:
    """Keeps the levels of GSIs in order, the routing table, and the eventfds assigned."""

    def __init__(self) -> None:
        self.levels: list[tuple[int, int]] = []
        self.routes: list[tuple[int, int, int, int]] = []
        self.tables = 0
        self.irqfds: dict[int, int] = {}
        self.ioeventfds: dict[tuple[int, int], int] = {}
        """By (address, length)."""

    @property
    def vm(self) -> Vm:
        """This object, as the VM that it stands for."""
        return cast(Vm, self)

    def irq_line(self, irq: int, level: int) -> None:
        self.levels.append((irq, level))

    def set_gsi_routing(self, entries: Iterable[abi.kvm_irq_routing_entry]) -> None:
        self.tables += 1
        self.routes = [_route(entry) for entry in entries]

    def irqfd(self, fd: int, gsi: int) -> None:
        self.irqfds[gsi] = fd

    def ioeventfd(self, fd: int, addr: int, length: int, flags: int = 0) -> None:
        if flags == abi.KVM_IOEVENTFD_FLAG_DEASSIGN:
            assert self.ioeventfds.pop((addr, length)) == fd
        else:
            assert (flags, (addr, length) in self.ioeventfds) == (0, False)
            self.ioeventfds[addr, length] = fd


def _route(entry: abi.kvm_irq_routing_entry) -> tuple[int, int, int, int]:
    if entry.type == abi.KVM_IRQ_ROUTING_MSI:
        address = entry.u.msi.address_hi << 32 | entry.u.msi.address_lo
        return entry.type, entry.gsi, address, entry.u.msi.data
    return entry.type, entry.gsi, entry.u.irqchip.irqchip, entry.u.irqchip.pin
