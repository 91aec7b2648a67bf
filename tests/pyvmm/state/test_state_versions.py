# SPDX-License-Identifier: Apache-2.0
"""The fields of each version of each device's state.

Added, removed or redefined fields need a new STATE_VERSION and a new line here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

from devices.balloon.dialects import BITMAP, STANDARD
from devices.bus import Bus
from devices.legacy.acpi_pm import AcpiPm
from devices.legacy.rtc import Rtc
from devices.legacy.uart import Uart16550
from devices.pci.host_bridge import ConfigMechanism1, PciBus
from devices.state import Stateful, Value, decode
from devices.testing.balloon.driver import STATS, BalloonDriver
from devices.testing.balloon.misc import MISC, MiscDriver
from devices.testing.recorders import RecordingInterruptLine
from pyvmm.state import kvm_vcpu, kvm_vm
from tests.devices.console.console_board import ConsoleBoard, ConsoleDriver, RecordingHost
from tests.pyvmm.state.tiny_guest import tiny

FUNCTION = (
    "bars* decoded* device_id registers.cache_line_size registers.command"
    " registers.interrupt_line vendor_id"
)
TRANSPORT = (
    " common.device_feature_select common.driver_feature_select common.queue_select"
    " interrupts.config_vector interrupts.isr_status interrupts.queue_vectors*"
    " msix.capability.message_control msix.pending msix.table.address_high#"
    " msix.table.address_low# msix.table.control# msix.table.data#"
    " window.bar window.length window.offset window.pci_cfg_data "
) + " ".join(f"function.{name}" for name in FUNCTION.split())
DEVICE = (
    " device.accepted device.config_notifications device.dialect device.generation device.offered"
    " device.queues.counters.bad_payloads device.queues.counters.interrupts"
    " device.queues.counters.readable_bytes device.queues.counters.requests"
    " device.queues.desc_gpa device.queues.device_gpa device.queues.driver_gpa"
    " device.queues.enabled device.queues.indices* device.queues.size device.status"
)
BALLOON = (
    " device.own.deflate.pages device.own.inflate.discarded_bytes device.own.inflate.pages"
    " device.own.num_pages device.own.queue_numbers* device.own.stats.in_flight.gpas*"
    " device.own.stats.in_flight.head device.own.stats.in_flight.lengths* device.own.stats.requests"
)
VIRTIO_BALLOON = TRANSPORT + DEVICE + BALLOON + " device.config.actual"

VIRTIO_CONSOLE = (TRANSPORT + DEVICE).replace(" device.dialect", "") + (
    " device.own.driver_ready device.own.pending* device.own.ports.announced"
    " device.own.ports.discarded_bytes device.own.ports.guest_open device.own.ports.held*"
    " device.own.ports.input_bytes device.own.ports.is_console device.own.ports.name"
    " device.own.ports.number device.own.ports.output_bytes device.own.ports.ready"
    " device.own.ports.told_host_open"
)

VERSIONS = {
    ("acpi_pm", 1): "pm1a_enable",
    ("host-bridge", 1): FUNCTION,
    ("pci_config_ports", 1): "address",
    ("rtc", 1): "memory registers.index",
    ("kvm-vcpu", 1): (
        "cpuid debugregs lapic mp_state msr_indices* msr_values* regs sregs2 tsc_deadline"
        " tsc_khz vcpu_events xcrs xsave"
    ),
    ("kvm-vm", 1): "clock_ns clock_tsc ioapic pic_master pic_slave pit2",
    ("uart", 1): (
        "divisor fifos_enabled ier modem_deltas overrun received registers.lcr registers.mcr"
        " registers.scr transmitter_empty_pending trigger_bytes"
    ),
    ("virtio_console", 1): VIRTIO_CONSOLE,
    ("virtio_balloon", 1, "bitmap"): VIRTIO_BALLOON
    + " device.own.misc.buffer.gpas* device.own.misc.buffer.head device.own.misc.buffer.lengths*"
    " device.own.misc.last_id device.own.misc.late_messages",
    ("virtio_balloon", 1, "standard"): VIRTIO_BALLOON
    + " device.config.poison_val device.own.free_page_hint.ignored"
    " device.own.free_page_hint.last_id device.own.reporting.discarded_bytes"
    " device.own.reporting.pages",
}


def names(value: Value, prefix: str = "") -> Iterator[str]:
    """Yield every field by its full name; * is for a list of numbers, # for a vector's number."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from names(each, f"{prefix}.{name}" if prefix else name)
    elif isinstance(value, list):
        if not value or isinstance(value[0], int):
            yield f"{prefix}*"
        for each in value:
            if isinstance(each, dict):
                yield from names(each, prefix)
    else:
        yield re.sub(r"(msix\..*?)\d+$", r"\1#", prefix)


def bitmap_balloon() -> Stateful:
    driver = BalloonDriver(BITMAP).start()
    driver.send(STATS, [b""])
    MiscDriver(driver).offer_buffer()
    assert MISC in driver.queues
    return driver.board.transport


def standard_balloon() -> Stateful:
    driver = BalloonDriver(STANDARD, offered=STANDARD.features.known).start()
    driver.send(STATS, [b""])
    return driver.board.transport


def console() -> Stateful:
    board, host = ConsoleBoard(["data"]), RecordingHost(room=1)
    board.console.ports["data"].connect(host)
    ConsoleDriver(board).get_ready().write(1, b"two")
    return board.transport


@pytest.mark.parametrize(
    ("part", "variant"),
    [
        (AcpiPm(lambda: None, lambda: None), ()),
        (PciBus(Bus("mmio"), []).host_bridge, ()),
        (ConfigMechanism1(PciBus(Bus("mmio"), []), lambda: None), ()),
        (Rtc(lambda: 0.0, 3 << 30, 0), ()),
        (Uart16550(RecordingInterruptLine(), lambda data: None), ()),
        (console(), ()),
        (bitmap_balloon(), ("bitmap",)),
        (standard_balloon(), ("standard",)),
    ],
    ids=lambda each: getattr(each, "STATE_KIND", None) or "-".join(each),
)
def test_the_fields_of_a_state_are_those_of_its_version(
    part: Stateful, variant: tuple[str, ...]
) -> None:
    known = VERSIONS[(part.STATE_KIND, part.STATE_VERSION, *variant)]
    assert sorted(set(names(part.save_state()))) == sorted(known.split())


@pytest.mark.skipif(not os.access("/dev/kvm", os.W_OK), reason="there is no KVM")
@pytest.mark.parametrize(
    ("kind", "version"),
    [(kvm_vcpu.KIND, kvm_vcpu.VERSION), (kvm_vm.KIND, kvm_vm.VERSION)],
)
def test_the_fields_of_what_kvm_holds_are_those_of_its_version(kind: str, version: int) -> None:
    with tiny() as machine:
        saved = decode(machine.save()[kind])
    assert sorted(set(names(dict(saved)))) == sorted(VERSIONS[kind, version].split())
