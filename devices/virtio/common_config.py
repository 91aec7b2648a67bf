# SPDX-License-Identifier: Apache-2.0
"""The common configuration structure of a virtio PCI device (VIRTIO 1.2, section 4.1.4.3).

A register table over the device: feature windows of 32 bits chosen by a selector, the status
field, and one set of queue registers for the queue that `queue_select` names. Selectors out of
range are harmless: features read as 0, a queue that does not exist has queue_size 0.
queue_notify_data exists only with NOTIF_CONFIG_DATA, which is not offered: it reads as 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from devices.ports import Tracer
from devices.registers import Access, Register, RegisterTable
from devices.virtio import features
from devices.virtio.device import VirtioDevice
from devices.virtio.pci_interrupts import NO_VECTOR, PciInterrupts
from devices.virtio.queue import DeviceQueue


class CommonConfig:
    """The registers of `device`; `registers` is mapped in the BAR.

    `on_change` is called after the driver may have started or stopped a queue.
    """

    def __init__(
        self,
        device: VirtioDevice,
        interrupts: PciInterrupts,
        on_change: Callable[[], None],
        tracer: Tracer,
    ) -> None:
        self._device = device
        self._interrupts = interrupts
        self._on_change = on_change
        self.registers = RegisterTable(
            f"{device.name}.common",
            [
                *self._device_registers(),
                *self._queue_registers(),
                *self._address_registers(),
                self._reset_register(),
            ],
            tracer=tracer,
        )

    def _device_registers(self) -> list[Register]:
        device, interrupts = self._device, self._interrupts
        read_only = partial(Register, access=Access.RO)
        return [
            Register("device_feature_select", 0x00, 4),
            read_only("device_feature", 0x04, 4, read=self._read_device_feature),
            Register("driver_feature_select", 0x08, 4),
            Register(
                "driver_feature",
                0x0C,
                4,
                read=self._read_driver_feature,
                write=self._write_driver_feature,
            ),
            Register(
                "config_msix_vector",
                0x10,
                2,
                read=lambda: interrupts.config_vector,
                write=interrupts.set_config_vector,
            ),
            read_only("num_queues", 0x12, 2, reset=len(device.queues)),
            Register(
                "device_status", 0x14, 1, read=lambda: int(device.status), write=self._write_status
            ),
            read_only("config_generation", 0x15, 1, read=lambda: device.config_generation),
        ]

    def _queue_registers(self) -> list[Register]:
        view, change = self._view_queue, self._change_queue
        return [
            Register("queue_select", 0x16, 2),
            Register(
                "queue_size",
                0x18,
                2,
                read=view(lambda queue: queue.size),
                write=change(lambda queue, value: queue.set_size(value)),
            ),
            Register(
                "queue_msix_vector",
                0x1A,
                2,
                read=view(lambda queue: self._interrupts.queue_vectors[queue.index], NO_VECTOR),
                write=change(
                    lambda queue, value: self._interrupts.set_queue_vector(queue.index, value)
                ),
            ),
            Register(
                "queue_enable",
                0x1C,
                2,
                read=view(lambda queue: int(queue.enabled)),
                write=change(self._write_queue_enable),
            ),
            Register("queue_notify_off", 0x1E, 2, Access.RO, read=view(lambda queue: queue.index)),
        ]

    def _address_registers(self) -> list[Register]:
        """Return the registers with the addresses of the selected queue's parts.

        4.1.3.2: the two 32-bit halves MUST be accessible on their own. They are, because the table
        merges a partial write with the rest of its register.
        """
        view, change = self._view_queue, self._change_queue
        return [
            Register(
                "queue_desc",
                0x20,
                8,
                read=view(lambda queue: queue.desc_gpa),
                write=change(lambda queue, value: queue.set_addresses(desc_gpa=value)),
            ),
            Register(
                "queue_driver",
                0x28,
                8,
                read=view(lambda queue: queue.driver_gpa),
                write=change(lambda queue, value: queue.set_addresses(driver_gpa=value)),
            ),
            Register(
                "queue_device",
                0x30,
                8,
                read=view(lambda queue: queue.device_gpa),
                write=change(lambda queue, value: queue.set_addresses(device_gpa=value)),
            ),
        ]

    def _reset_register(self) -> Register:
        """Return queue_reset: reads as 0, since the write itself completes the reset (4.1.4.3.1).

        At 0x38, before it, is queue_notify_data.
        """
        write = self._change_queue(self._write_queue_reset)
        return Register("queue_reset", 0x3A, 2, read=lambda: 0, write=write)

    # Registers of the device.

    def _read_device_feature(self) -> int:
        shift = self._feature_shift("device_feature_select")
        return 0 if shift is None else self._device.offered >> shift & 0xFFFF_FFFF

    def _read_driver_feature(self) -> int:
        shift = self._feature_shift("driver_feature_select")
        return 0 if shift is None else self._device.accepted >> shift & 0xFFFF_FFFF

    def _write_driver_feature(self, bits: int) -> None:
        shift = self._feature_shift("driver_feature_select")
        if shift is not None:
            self._device.accept_features(shift, bits)

    def _feature_shift(self, selector: str) -> int | None:
        """Return the first bit of the window; None beyond bit 63 (4.1.4.3.1)."""
        selected = self.registers[selector]
        return 32 * selected if selected < 2 else None

    def _write_status(self, value: int) -> None:
        self._device.write_status(value)
        if value == 0:
            # 4.1.5.1.2.1: all events MUST be unmapped upon reset.
            self._interrupts.reset()
            self.registers.reset()
        self._on_change()

    # Registers of the selected queue.

    def _selected(self) -> DeviceQueue | None:
        index = self.registers["queue_select"]
        return self._device.queues[index] if self._device.has_queue(index) else None

    def _view_queue(self, read: Callable[[DeviceQueue], int], absent: int = 0) -> Callable[[], int]:
        def handler() -> int:
            queue = self._selected()
            return absent if queue is None else read(queue)

        return handler

    def _change_queue(self, write: Callable[[DeviceQueue, int], None]) -> Callable[[int], None]:
        def handler(value: int) -> None:
            queue = self._selected()
            if queue is not None:
                write(queue, value)

        return handler

    def _write_queue_enable(self, queue: DeviceQueue, value: int) -> None:
        # 4.1.4.3.2: the driver MUST NOT write 0; values other than 1 are undefined.
        if value == 1:
            self._device.enable_queue(queue.index)
            self._on_change()

    def _write_queue_reset(self, queue: DeviceQueue, value: int) -> None:
        # 4.1.4.3.2: without RING_RESET the field does not exist; values other than 1 are undefined.
        if value == 1 and self._device.accepted & features.RING_RESET:
            self._device.reset_queue(queue.index)
            self._interrupts.set_queue_vector(queue.index, NO_VECTOR)
            self._on_change()
