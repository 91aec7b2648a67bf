# SPDX-License-Identifier: Apache-2.0
"""The catalogue of PCI devices: names, slots, and models made only when configured."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from devices.rng.device import RngDevice
from devices.testing.ram import AnonymousRam
from devices.testing.recorders import RecordingTracer
from devices.testing.timers import FakeTimers
from devices.virtio.pci_transport import STATE_KIND_PREFIX
from pyvmm.config import InvalidConfiguration, MachineConfig
from pyvmm.machine.catalogue import (
    CATALOGUE,
    MAX_NAME_BYTES,
    CatalogueEntry,
    Ports,
    make_models,
    part_kinds,
)
from pyvmm.machine.machine import Machine
from pyvmm.state.records import record_header
from pyvmm.units import GIB, MIB
from pyvmm.vm import VirtualMachine


def config(rng: int | None = None) -> MachineConfig:
    return MachineConfig(Path("/kernel"), None, "", 64 * MIB, 1, "standard", rng=rng)


def models(
    configuration: MachineConfig, devices: tuple[CatalogueEntry, ...] = CATALOGUE
) -> list[str]:
    ports = Ports(AnonymousRam((0, 64 * MIB)), FakeTimers(), RecordingTracer())
    return [entry.name for entry, _ in make_models(devices, configuration, ports)]


def entropy_device(name: str, slot: int) -> CatalogueEntry:
    """Return the entry of an entropy device, which is always named "rng"."""
    return CatalogueEntry(
        name, slot, lambda config, ports: RngDevice(ports.ram.memory, ports.timers, ports.tracer)
    )


def named_device(name: str, ports: Ports) -> RngDevice:
    device = RngDevice(ports.ram.memory, ports.timers, ports.tracer)
    device.name = name
    return device


def test_slots_and_names_are_unique() -> None:
    slots = [entry.slot for entry in CATALOGUE]
    assert len(set(slots)) == len(slots)
    assert all(1 <= slot <= 31 for slot in slots), "slot 0 is the host bridge"
    assert len({entry.name for entry in CATALOGUE}) == len(CATALOGUE)


def test_a_device_is_made_only_when_it_is_configured() -> None:
    assert models(config()) == ["balloon"]
    assert models(config(rng=0)) == ["balloon", "rng"]
    assert models(config().changed(ports=("data",))) == ["balloon", "console"]


def test_every_device_can_be_saved() -> None:
    kinds = part_kinds()
    assert {f"virtio_{entry.name}" for entry in CATALOGUE} <= kinds.keys()


def test_a_longer_catalogue_adds_a_device_and_its_saved_part() -> None:
    devices = (CATALOGUE[0], entropy_device("rng", 3))
    assert models(config(), devices) == ["balloon", "rng"]
    longer = (*CATALOGUE, entropy_device("entropy", 3))
    assert part_kinds(longer).keys() - part_kinds().keys() == {"virtio_entropy"}


def test_a_second_device_of_one_name_is_refused() -> None:
    with pytest.raises(ValueError, match="two devices are named 'rng'"):
        models(config(rng=0), (*CATALOGUE, entropy_device("rng", 3)))


def test_a_model_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="the model of device 'entropy' is named 'rng'"):
        models(config(), (*CATALOGUE, entropy_device("entropy", 3)))


@pytest.mark.parametrize("name", ["", "entrop\u00efe", "x" * (MAX_NAME_BYTES + 1)])
def test_a_name_that_a_saved_machine_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"1 to 25 ASCII bytes"):
        models(config(), (*CATALOGUE, entropy_device(name, 3)))


@pytest.mark.parametrize("name", ["x", "x" * MAX_NAME_BYTES])
def test_the_shortest_and_the_longest_name_are_accepted(name: str) -> None:
    entry = CatalogueEntry(name, 3, lambda config, ports: named_device(name, ports))
    assert models(config(), (*CATALOGUE[:1], entry)) == ["balloon", name]


def test_the_longest_name_fits_into_a_saved_machine() -> None:
    record_header(f"{STATE_KIND_PREFIX}{'x' * MAX_NAME_BYTES}", 1, b"")


def test_a_vm_without_a_balloon_is_refused() -> None:
    async def create() -> None:
        VirtualMachine(cast(Machine, SimpleNamespace(pci_devices={"rng": None})))

    with pytest.raises(ValueError, match="must include the balloon"):
        asyncio.run(create())


@pytest.mark.parametrize("rng", [-1, 1 * GIB + 1])
def test_an_impossible_limit_of_the_entropy_device_is_refused(rng: int) -> None:
    with pytest.raises(InvalidConfiguration, match="bytes per second"):
        config(rng=rng)
