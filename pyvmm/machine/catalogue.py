# SPDX-License-Identifier: Apache-2.0
"""The catalogue of PCI devices that a machine can have, and the slot of each.

A device is one line here and a package of its own below `devices`. `make` builds the model from the
machine's configuration, or returns None if the configuration has no such device; it imports the
model itself, so a device that is not used costs no start-up time. A slot never changes
its device: saved machines and drivers rely on it.

A program that has a device of its own creates its machine with a longer catalogue:

    devices = (*CATALOGUE, CatalogueEntry("entropy", 3, make_entropy))
    machine = Machine(platform, devices=devices)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from devices.ports import GuestRam, Timers, Tracer
    from devices.virtio.description import Describe
    from devices.virtio.device import VirtioDevice
    from pyvmm.config import MachineConfig
    from pyvmm.state.records import Kind


MAX_NAME_BYTES = 25
"""A saved machine has the device as the record `virtio_NAME`, whose kind is 32 bytes of ASCII."""


class Ports(NamedTuple):
    """The ports of a machine for its device models: `ram`, `timers` and `tracer`."""

    ram: GuestRam
    timers: Timers
    tracer: Tracer


class CatalogueEntry(NamedTuple):
    """One kind of device."""

    name: str
    """Also the model's `name`."""
    slot: int
    """PCI device number, 1 to 31."""
    make: Callable[[MachineConfig, Ports], VirtioDevice | None]
    """Returns the model, or None if the configuration has no such device."""
    describe: Callable[[], Describe] | None = None
    """Returns the function that describes the device's buffers for people, if it has one."""


def _balloon(config: MachineConfig, ports: Ports) -> VirtioDevice:
    # 14 modules, for machines with this device only.
    from devices.balloon import dialects
    from devices.balloon.device import BalloonDevice

    dialect = dialects.by_name(config.dialect)
    return BalloonDevice(dialect, ports.ram, ports.tracer, offered=config.balloon_features)


def _rng(config: MachineConfig, ports: Ports) -> VirtioDevice | None:
    if config.rng is None:
        return None
    # 2 modules, for machines with this device only.
    from devices.rng.device import RngDevice

    return RngDevice(ports.ram.memory, ports.timers, ports.tracer, bytes_per_s=config.rng)


def _console(config: MachineConfig, ports: Ports) -> VirtioDevice | None:
    if not config.has_console_device:
        return None
    # 7 modules, for machines with this device only.
    from devices.console.device import ConsoleDevice

    return ConsoleDevice(
        ports.ram.memory,
        ports.tracer,
        console=config.console == "virtio",
        ports=config.ports,
        max_ports=1 + len(config.ports) + config.hotplug_ports,
    )


def _describe_balloon() -> Describe:
    # 5 modules, for views of a guest only.
    from devices.balloon.description import describe

    return describe


def _describe_rng() -> Describe:
    # 2 modules, for views of a guest only.
    from devices.rng.description import describe

    return describe


def _describe_console() -> Describe:
    # 3 modules, for views of a guest only.
    from devices.console.description import describe

    return describe


CATALOGUE = (
    CatalogueEntry("balloon", 1, _balloon, _describe_balloon),
    CatalogueEntry("rng", 2, _rng, _describe_rng),
    CatalogueEntry("console", 4, _console, _describe_console),
)
"""The devices that come with pyvmm."""


def describer(device: str, devices: Sequence[CatalogueEntry] = CATALOGUE) -> Describe | None:
    """Return the function that describes the buffers of `device`; None if there is none."""
    for entry in devices:
        if entry.name == device and entry.describe is not None:
            return entry.describe()
    return None


def make_models(
    devices: Sequence[CatalogueEntry], config: MachineConfig, ports: Ports
) -> Iterator[tuple[CatalogueEntry, VirtioDevice]]:
    """Yield each of `devices` that `config` has, with its model.

    ValueError for a name that two devices have, that the model does not have, or that a saved
    machine could not hold.
    """
    made: set[str] = set()
    for entry in devices:
        model = entry.make(config, ports)
        if model is None:
            continue
        if not (entry.name.isascii() and 0 < len(entry.name) <= MAX_NAME_BYTES):
            raise ValueError(f"a device name is 1 to {MAX_NAME_BYTES} ASCII bytes: {entry.name!r}")
        if entry.name in made:
            raise ValueError(f"two devices are named {entry.name!r}")
        if model.name != entry.name:
            raise ValueError(f"the model of device {entry.name!r} is named {model.name!r}")
        made.add(entry.name)
        yield entry, model


def part_kinds(devices: Sequence[CatalogueEntry] = CATALOGUE) -> dict[str, Kind]:
    """Return every kind of record that a part of a machine with `devices` may have, by name."""
    # 13 modules, for machines that are saved or restored only.
    from devices.state import MAX_PAYLOAD_BYTES
    from devices.virtio.pci_transport import STATE_KIND_PREFIX, VirtioPciTransport
    from pyvmm.state.parts import PLATFORM_KINDS
    from pyvmm.state.records import Kind

    virtio = Kind(VirtioPciTransport.STATE_VERSION, MAX_PAYLOAD_BYTES)
    return {
        **PLATFORM_KINDS,
        **{f"{STATE_KIND_PREFIX}{entry.name}": virtio for entry in devices},
    }
