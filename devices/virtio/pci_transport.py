# SPDX-License-Identifier: Apache-2.0
"""A virtio device on the PCI bus (VIRTIO 1.2, section 4.1), without the legacy interface.

All structures live in one memory BAR, each on its own page, and the MSI-X table in another:

    BAR 0  0x0000 common configuration    BAR 2  0x000 MSI-X table
           0x1000 ISR status                     0x800 pending bits
           0x2000 device configuration
           0x3000 notification: 4 bytes for each queue

The driver notifies queue N by writing to 0x3000 + 4 N. While the queue is live and the BAR is
decoded, that address is assigned to the queue's host notifier, so that the machine can catch the
write without a register access. Either way the queue is served later: the owner of the notifiers
calls `serve_queue`, which serves a bounded number of buffers and returns whether there may be more.
So a vCPU thread never serves a queue, and one busy queue does not starve the others.

A device without a configuration space has no VIRTIO_PCI_CAP_DEVICE_CFG capability (4.1.4.6).

Nothing here locks: every method, and every access to `function` and its BARs, happens under the
device lock of the machine.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import NamedTuple

from devices.bus import Bus
from devices.pci.config_space import PciFunction
from devices.pci.msix import MsixTable
from devices.ports import BusDevice, HostNotifiers, MsiSink, Tracer
from devices.registers import Access, Register, RegisterTable
from devices.state import Fields, Payload
from devices.virtio.common_config import CommonConfig
from devices.virtio.device import VirtioDevice
from devices.virtio.pci_interrupts import PciInterrupts
from devices.virtio.pci_window import BODY_BYTES as PCI_CFG_BODY_BYTES
from devices.virtio.pci_window import PciConfigWindow
from devices.virtio.saved import check_device, save_device

VENDOR_ID = 0x1AF4
DEVICE_ID_BASE = 0x1040
REVISION = 1  # 4.1.2.1: 1 or higher for a device without legacy interface
CLASS_CODE = 0x00FF00  # none of the defined classes fits; virtio devices commonly use this one
"""PCI ids (4.1.2); the device id is the base plus the id of the device type."""

VIRTIO_BAR = 0
VIRTIO_BAR_BYTES = 0x4000
COMMON_OFFSET = 0x0000
ISR_OFFSET = 0x1000
DEVICE_OFFSET = 0x2000
NOTIFY_OFFSET = 0x3000
NOTIFY_MULTIPLIER = 4
"""The BAR of the structures: its size and their offsets, and the distance of two queues' addresses
in the notification structure, all in bytes."""

MSIX_BAR = 2
MSIX_BAR_BYTES = 0x1000
MSIX_PBA_OFFSET = 0x800
MAX_QUEUES = MSIX_PBA_OFFSET // 16 - 1
"""The table has 16 bytes for each vector: one for each queue and one for the configuration."""

STATE_KIND_PREFIX = "virtio_"
"""Kind of a saved device, before the name of the device."""

CAP_ID_VENDOR = 0x09
CAP_COMMON_CFG = 1
CAP_NOTIFY_CFG = 2
CAP_ISR_CFG = 3
CAP_DEVICE_CFG = 4
"""The id of a vendor capability, and VIRTIO_PCI_CAP_* (4.1.4)."""


class VirtioPciTransport:
    """PCI function, BARs and interrupts of `device`; a `Stateful` part.

    The PCI bus has `function`, whose MSI-X table is `msix`. `interrupts` are the guest notifiers,
    `common` is the common configuration. `tables` are all register tables that have values to show.
    """

    def __init__(
        self, device: VirtioDevice, msi: MsiSink, host_notifiers: HostNotifiers, tracer: Tracer
    ) -> None:
        if not 1 <= len(device.queues) <= MAX_QUEUES:
            raise ValueError(f"{device.name}: {len(device.queues)} queues, not 1 to {MAX_QUEUES}")
        self.device = device
        self._host_notifiers = host_notifiers
        self._assigned: list[int | None] = [None] * len(device.queues)
        pci_device_id = DEVICE_ID_BASE + device.device_id
        self.function = PciFunction(
            vendor_id=VENDOR_ID,
            device_id=pci_device_id,
            subsystem_vendor_id=VENDOR_ID,
            subsystem_id=pci_device_id,  # 4.1.2.1: 0x40 or higher
            class_code=CLASS_CODE,
            revision=REVISION,
            interrupt_pin=1,
            name=device.name,
            tracer=tracer.quiet,
        )
        # 4.1.5.1.2.1: any event can be mapped to any vector; one for each event is the most that
        # is useful.
        self.msix = MsixTable(len(device.queues) + 1, msi, device.name, tracer.quiet)
        queues = [queue.spec.name for queue in device.queues]
        self.interrupts = PciInterrupts(self.function, self.msix, queues, tracer)
        device.connect(self.interrupts)
        device.queue_ready.add(host_notifiers.notify)
        self.common = CommonConfig(device, self.interrupts, self._update_host_notifiers, tracer)
        structures = self._structures(tracer)
        self.tables = (
            self.function.header,
            self.msix.capability,
            device.config,
            *(
                each.registers
                for each in structures
                if isinstance(each.registers, RegisterTable) and each.cfg_type != CAP_NOTIFY_CFG
            ),
        )
        self._add_to_function(structures, tracer)
        self.function.bar_moved.add(self._bar_moved)
        self.function.bus_master_set.add(self._notify_assigned)
        self.function.bus_master_set.add(device.on_memory_accessible)

    def serve_queue(self, queue: int) -> bool:
        """Serve a notified `queue`; return True if there may be more buffers, so call again.

        May be called at any time: does nothing while the device is not running, nor without bus
        mastering, when a function must not access memory.
        """
        more = self.function.bus_master_enabled and self.device.process_queue(queue)
        if not self.device.running:
            self._update_host_notifiers()
        return more

    STATE_VERSION = 1

    @property
    def STATE_KIND(self) -> str:
        """The kind of the saved state, which covers device and transport."""
        return f"{STATE_KIND_PREFIX}{self.device.name}"

    def save_state(self) -> Payload:
        """Return all state but the rings, which are in guest RAM."""
        return {
            "device": save_device(self.device),
            "interrupts": self.interrupts.save_state(),
            "msix": self.msix.save_state(),
            "common": self.common.registers.save_state(),
            "window": self._window.save_state(),
            "function": self.function.save_state(),
        }

    def restore_state(self, fields: Fields) -> None:
        """Restore as `Stateful.restore_state`, after guest RAM and the interrupt controllers.

        Finally notify all live queues, and the driver of everything.
        """
        restores = [
            check_device(self.device, fields.part("device")),
            self.interrupts.check_state(fields.part("interrupts")),
            self.msix.check_state(fields.part("msix")),
            self.common.registers.check_state(fields.part("common")),
            self._window.check_state(fields.part("window")),
            self.function.check_state(fields.part("function")),
        ]
        fields.done()
        for restore in restores:
            restore()
        self._update_host_notifiers()
        self.device.repeat_notifications()

    def _structures(self, tracer: Tracer) -> list[_BarStructure]:
        """Return the structures of the virtio BAR, in the order of the capability list."""
        device, common = self.device, self.common.registers
        interrupts = self.interrupts
        isr = Register(
            "isr_status",
            0,
            1,
            Access.RO,
            read=interrupts.read_isr,
            peek=lambda: interrupts.isr_status,
        )
        # 4.1.5.2: the driver writes the queue's index, which the address implies already.
        registers = [
            Register(
                f"queue{queue.index}",
                NOTIFY_MULTIPLIER * queue.index,
                2,
                Access.WO,
                write=partial(self._notified, queue.index),
            )
            for queue in device.queues
        ]
        notify = RegisterTable(f"{device.name}.notify", registers, tracer=tracer)
        notify_bytes = NOTIFY_MULTIPLIER * len(registers)
        isr_table = RegisterTable(f"{device.name}.isr", [isr], tracer=tracer)
        config_bytes = device.config.size_bytes
        structures = [
            _BarStructure(CAP_COMMON_CFG, COMMON_OFFSET, common.size_bytes, common),
            _BarStructure(CAP_ISR_CFG, ISR_OFFSET, isr_table.size_bytes, isr_table),
            _BarStructure(CAP_NOTIFY_CFG, NOTIFY_OFFSET, notify_bytes, notify),
        ]
        if config_bytes:  # 4.1.4.6: only for devices that have a device-specific configuration
            config = _BarStructure(
                CAP_DEVICE_CFG, DEVICE_OFFSET, config_bytes, _DeviceConfig(device)
            )
            structures.insert(2, config)
        return structures

    def _add_to_function(self, structures: list[_BarStructure], tracer: Tracer) -> None:
        function, msix = self.function, self.msix
        virtio_bar = Bus(f"{self.device.name}.bar", tracer=tracer, unclaimed_byte=0)
        for each in structures:
            virtio_bar.map(each.offset, each.length, each.registers)
            function.add_capability(CAP_ID_VENDOR, each.capability_body())
        self._window = window = PciConfigWindow(VIRTIO_BAR, virtio_bar, VIRTIO_BAR_BYTES)
        function.add_capability(
            CAP_ID_VENDOR,
            bytes(PCI_CFG_BODY_BYTES),
            read=window.read,
            write=window.write,
            peek=window.peek,
        )
        msix_bar = Bus(f"{self.device.name}.msix", tracer=tracer, unclaimed_byte=0)
        msix_bar.map(0, msix.table_bytes, msix.table)
        msix_bar.map(MSIX_PBA_OFFSET, msix.pba_bytes, msix.pba)
        msix.add_to(function, bar=MSIX_BAR, table_offset=0, pba_offset=MSIX_PBA_OFFSET)
        function.add_bar(VIRTIO_BAR, VIRTIO_BAR_BYTES, virtio_bar)
        function.add_bar(MSIX_BAR, MSIX_BAR_BYTES, msix_bar)

    def _notified(self, queue: int, _value: int) -> None:
        self._host_notifiers.notify(queue)

    def _bar_moved(self, index: int, _gpa: int | None) -> None:
        if index == VIRTIO_BAR:
            self._update_host_notifiers()

    def _notify_assigned(self) -> None:
        """Notify all live queues: without bus mastering, notifications had no effect."""
        for queue, gpa in enumerate(self._assigned):
            if gpa is not None:
                self._host_notifiers.notify(queue)

    def _update_host_notifiers(self) -> None:
        """Assign each live queue its notification address, if that has changed.

        A queue with a new address is notified: its driver may have made buffers available before,
        when a notification had no effect.
        """
        bar_gpa = self.function.bar_gpa(VIRTIO_BAR)
        for queue in self.device.queues:
            live = bar_gpa is not None and queue.ring is not None and self.device.running
            gpa = None
            if live and bar_gpa is not None:
                gpa = bar_gpa + NOTIFY_OFFSET + NOTIFY_MULTIPLIER * queue.index
            if gpa == self._assigned[queue.index]:
                continue
            self._assigned[queue.index] = gpa
            self._host_notifiers.assign(queue.index, gpa)
            if gpa is not None:
                self._host_notifiers.notify(queue.index)


class _BarStructure(NamedTuple):
    """One virtio structure in the virtio BAR."""

    cfg_type: int
    offset: int
    length: int
    registers: BusDevice

    def capability_body(self) -> bytes:
        """Return struct virtio_pci_cap (4.1.4) without its first two fields, with extra data."""
        extra = struct.pack("<I", NOTIFY_MULTIPLIER) if self.cfg_type == CAP_NOTIFY_CFG else b""
        cap_len = 16 + len(extra)
        fixed = struct.pack("<BBBBxx", cap_len, self.cfg_type, VIRTIO_BAR, 0)
        return fixed + struct.pack("<II", self.offset, self.length) + extra


class _DeviceConfig:
    """The device-specific configuration structure (4.1.4.6) as a `BusDevice`."""

    def __init__(self, device: VirtioDevice) -> None:
        self._device = device

    def read(self, offset: int, size: int) -> int:
        return self._device.read_config(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._device.write_config(offset, size, value)
