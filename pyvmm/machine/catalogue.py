# SPDX-License-Identifier: Apache-2.0
"""The catalogue of PCI devices: which devices a machine can have, and in which slot each lies.

A device is one line here and a folder of its own below `devices`. `make` builds the model from the
machine's configuration, or returns None where the configuration does not ask for the device; it
imports the model itself, so a device that is not used costs no start-up time. A slot never changes
its device: saved machines and drivers rely on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from devices.ports import GuestRam, Timers, Tracer
    from devices.virtio.device import VirtioDevice
    from pyvmm.config import MachineConfig


class Ports(NamedTuple):
    """What a machine offers its device models (`devices.ports`)."""

    ram: GuestRam
    timers: Timers
    tracer: Tracer


class Entry(NamedTuple):
    """One kind of device."""

    name: str
    """The model's `name`, too."""
    slot: int
    """PCI device number, 1 to 31."""
    make: Callable[[MachineConfig, Ports], VirtioDevice | None]


def _balloon(config: MachineConfig, ports: Ports) -> VirtioDevice:
    from devices.balloon import dialects
    from devices.balloon.device import BalloonDevice

    dialect = dialects.by_name(config.dialect)
    return BalloonDevice(dialect, ports.ram, ports.tracer, offered=config.balloon_features)


CATALOGUE = (Entry("balloon", 1, _balloon),)
