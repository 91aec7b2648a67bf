# SPDX-License-Identifier: Apache-2.0
"""A driver for the devices of a machine that never runs a guest.

    start_drivers(machine)
    parts = machine.save_parts()

A guest that arrives has drivers, and to restore their queues, vectors and notification addresses is
most of the work with a device. So the machine that a destination rehearses with gets them, too:
they do what VIRTIO 1.2, 3.1.1 and 4.1.5.1 ask of a driver, by the registers that a guest would
write. Their queues are empty, in RAM that is all zeros.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from devices.pci.config_space import COMMAND_BUS_MASTER, COMMAND_MEMORY_SPACE
from devices.pci.msix import CONTROL_ENABLE
from devices.virtio.status import DRIVEN, LIVE, NEGOTIATED
from pyvmm.memory import layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.registers import RegisterTable
    from devices.virtio.pci_transport import VirtioPciTransport
    from pyvmm.machine.machine import Machine

_RINGS_GPA = 1 << 20
_RING_BYTES = 1 << 16
"""More than any part of a queue of 1024 entries."""
_BAR_BYTES = 1 << 16
"""More than any BAR of a virtio device here."""
_MSI_GPA = 0xFEE0_0000
_FIRST_IDT_VECTOR = 0x21


def start_drivers(machine: Machine) -> None:
    """Initialise all virtio devices of `machine`, to which no event loop is attached."""
    rings = count(_RINGS_GPA, _RING_BYTES)
    bars = count(layout.MMIO32_GPA, _BAR_BYTES)
    with machine.lock, machine.platform.router.one_change():
        for device in machine.pci_devices.values():
            _start_driver(device.transport, rings, bars)


def _start_driver(transport: VirtioPciTransport, rings: Iterator[int], bars: Iterator[int]) -> None:
    header, common = transport.function.header, transport.common.registers
    for bar in transport.function.bars:
        _write(header, f"bar{bar.number}", next(bars))
    _write(header, "command", COMMAND_MEMORY_SPACE | COMMAND_BUS_MASTER)
    _write(common, "device_status", DRIVEN)
    for half in range(2):
        _write(common, "driver_feature_select", half)
        _write(common, "driver_feature", transport.device.offered >> 32 * half & 0xFFFF_FFFF)
    _write(common, "device_status", NEGOTIATED)
    queues = [queue.index for queue in transport.device.queues]
    _enable_vectors(transport, 1 + len(queues))
    _write(common, "config_msix_vector", 0)
    for queue in queues:
        _write(common, "queue_select", queue)
        _write(common, "queue_msix_vector", 1 + queue)
        for part in ("queue_desc", "queue_driver", "queue_device"):
            _write(common, part, next(rings))
        _write(common, "queue_enable", 1)
    _write(common, "device_status", LIVE)


def _enable_vectors(transport: VirtioPciTransport, vectors: int) -> None:
    _write(transport.msix.capability, "message_control", CONTROL_ENABLE)
    for vector in range(vectors):
        _write(transport.msix.table, f"address_low{vector}", _MSI_GPA)
        _write(transport.msix.table, f"data{vector}", _FIRST_IDT_VECTOR + vector)
        _write(transport.msix.table, f"control{vector}", 0)


def _write(registers: RegisterTable, name: str, value: int) -> None:
    """Write the register called `name`, as a guest does."""
    (register,) = (each for each in registers if each.name == name)
    registers.write(register.offset, register.size, value)
