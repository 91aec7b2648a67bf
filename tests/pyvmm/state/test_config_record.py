# SPDX-License-Identifier: Apache-2.0
"""The configuration of a machine, saved and read: every field, and the limits of each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.state import Fields, StateError, decode
from pyvmm.config import MAX_RAM_BYTES, MIN_RAM_BYTES, MachineConfig
from pyvmm.state.config_record import config_record, encode_config, restore_config
from pyvmm.units import MIB

CONFIG = MachineConfig(
    kernel=Path("/vmlinux"),
    initrd=Path("/initramfs"),
    command_line="console=ttyS0",
    ram_bytes=64 * MIB,
    vcpus=2,
    dialect="standard",
    offer=("reporting",),
    withhold=("stats-vq",),
    rng=1000,
)
LONGEST_TEXT_BYTES = 64 << 10


def payload(**changes: object) -> dict[str, Any]:
    return {**decode(encode_config(CONFIG)), **changes}


def restored(fields: dict[str, Any]) -> MachineConfig:
    return restore_config(Fields("config", fields))


@given(
    st.builds(
        CONFIG.changed,
        kernel=st.binary(min_size=1, max_size=30).map(os.fsdecode).map(Path),
        initrd=st.none() | st.just(Path("/i\udcff")),
        command_line=st.binary(max_size=30).map(os.fsdecode),
        ram_bytes=st.integers(MIN_RAM_BYTES // MIB, MAX_RAM_BYTES // MIB).map(lambda n: n * MIB),
        vcpus=st.integers(1, 4),
        rng=st.none() | st.integers(1, 1 << 30),
        console=st.sampled_from(["serial", "virtio"]),
        ports=st.lists(st.sampled_from("abc"), unique=True).map(tuple),
        hotplug_ports=st.integers(0, 12),
    )
)
def test_a_configuration_is_read_as_it_was_saved(config: MachineConfig) -> None:
    assert restored(dict(decode(encode_config(config)))) == config


def test_the_record_holds_the_configuration_in_the_current_version() -> None:
    record = config_record(CONFIG)
    assert (record.kind, record.version, record.payload) == ("config", 1, encode_config(CONFIG))


def test_a_machine_without_a_console_device_has_a_record_without_it() -> None:
    """So versions that do not know the device can restore the machine."""
    assert not {"console", "ports", "hotplug_ports"} & payload().keys()
    assert restored(payload()) == CONFIG


@pytest.mark.parametrize("name", ["kernel", "initrd", "command_line"])
def test_texts_are_limited_to_64_kib(name: str) -> None:
    longest = b"x" * LONGEST_TEXT_BYTES
    config = restored(payload(**{name: longest}))
    assert os.fsencode(getattr(config, name)) == longest
    with pytest.raises(StateError, match=f"^config: {name} has 65537 bytes"):
        restored(payload(**{name: longest + b"x"}))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"rng": [1, 2]}, "rng has 2 items, more than 1"),
        ({"offer": [1]}, "offer has an item that is not a name"),
        ({"withhold": [b"x"]}, "withhold has an item that is not a name"),
        ({"offer": ["x"] * 65}, "offer has 65 items, more than 64"),
        ({"vcpus": 0}, "as a whole is invalid"),
        ({"ram_bytes": MIN_RAM_BYTES - MIB}, "as a whole is invalid"),
        ({"dialect": "none"}, "as a whole is invalid"),
        ({"unknown": 1}, "unknown"),
        ({"console": "virtio"}, "ports is missing"),
        ({"console": "vga", "ports": [], "hotplug_ports": 0}, "as a whole is invalid"),
        ({"console": "serial", "ports": [1], "hotplug_ports": 0}, "an item that is not a name"),
        ({"console": "serial", "ports": ["a/b"], "hotplug_ports": 0}, "as a whole is invalid"),
        ({"console": "serial", "ports": [], "hotplug_ports": 32}, "as a whole is invalid"),
        ({"ports": ["a"]}, "ports is not known here"),
    ],
)
def test_an_impossible_configuration_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(StateError, match=why):
        restored(payload(**change))
