# SPDX-License-Identifier: Apache-2.0
"""Routes of pins and messages, and the eventfds that raise them, as they are given to KVM."""

from __future__ import annotations

import os

from pykvm import abi
from pyvmm.machine.interrupts import GsiLine, InterruptRouter, MsiVectors
from pyvmm.memory.layout import FIRST_MSI_GSI
from tests.pyvmm.machine.recording_vm import RecordingVm

PIN, MSI = abi.KVM_IRQ_ROUTING_IRQCHIP, abi.KVM_IRQ_ROUTING_MSI
MASTER, SLAVE, IOAPIC = (
    abi.KVM_IRQCHIP_PIC_MASTER,
    abi.KVM_IRQCHIP_PIC_SLAVE,
    abi.KVM_IRQCHIP_IOAPIC,
)
MESSAGE = (0xFEE0_1000 | 1 << 40, 0x41)


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
