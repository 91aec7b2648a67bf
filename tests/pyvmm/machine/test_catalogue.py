# SPDX-License-Identifier: Apache-2.0
"""The catalogue of PCI devices: names, slots, and models made only when configured."""

from __future__ import annotations

from pathlib import Path

import pytest

from devices.testing.ram import AnonymousRam
from devices.testing.recorders import RecordingTracer
from devices.testing.timers import FakeTimers
from pyvmm.config import InvalidConfiguration, MachineConfig
from pyvmm.machine.catalogue import CATALOGUE, Ports, part_kinds
from pyvmm.units import GIB, MIB


def config(rng: int | None = None) -> MachineConfig:
    return MachineConfig(Path("/kernel"), None, "", 64 * MIB, 1, "standard", rng=rng)


def models(configuration: MachineConfig) -> list[str]:
    ports = Ports(AnonymousRam((0, 64 * MIB)), FakeTimers(), RecordingTracer())
    made = [(entry, entry.make(configuration, ports)) for entry in CATALOGUE]
    for entry, model in made:
        assert model is None or model.name == entry.name
    return [entry.name for entry, model in made if model is not None]


def test_slots_and_names_are_unique() -> None:
    slots = [entry.slot for entry in CATALOGUE]
    assert len(set(slots)) == len(slots)
    assert all(1 <= slot <= 31 for slot in slots), "slot 0 is the host bridge"
    assert len({entry.name for entry in CATALOGUE}) == len(CATALOGUE)


def test_a_device_is_made_only_when_it_is_configured() -> None:
    assert models(config()) == ["balloon"]
    assert models(config(rng=0)) == ["balloon", "rng"]


def test_every_device_can_be_saved() -> None:
    kinds = part_kinds()
    assert {f"virtio_{entry.name}" for entry in CATALOGUE} <= kinds.keys()


@pytest.mark.parametrize("rng", [-1, 1 * GIB + 1])
def test_an_impossible_limit_of_the_entropy_device_is_refused(rng: int) -> None:
    with pytest.raises(InvalidConfiguration, match="bytes per second"):
        config(rng=rng)
