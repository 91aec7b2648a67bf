# SPDX-License-Identifier: Apache-2.0
"""The configuration of a machine as a record: in a snapshot, and first in a migration stream.

The fields of the console device are present for a machine that has one. So a machine without can be
restored by versions of pyvmm that do not know the device.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import MappingProxyType

from devices.state import MAX_PAYLOAD_BYTES, Fields, Payload, encode
from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.state.records import Kind, Record

CONFIG = "config"
CONFIG_KIND = Kind(1, MAX_PAYLOAD_BYTES)

_MAX_TEXT_BYTES = 1 << 16
_MAX_FEATURES = 64


def encode_config(config: MachineConfig, further: Payload = MappingProxyType({})) -> bytes:
    """Return the payload that `restore_config` reads, with `further` fields."""
    payload: Payload = {
        "kernel": os.fsencode(config.kernel),
        "initrd": os.fsencode(config.initrd) if config.initrd else b"",
        "command_line": os.fsencode(config.command_line),
        "ram_bytes": config.ram_bytes,
        "vcpus": config.vcpus,
        "dialect": config.dialect,
        "offer": list(config.offer),
        "withhold": list(config.withhold),
        "rng": [] if config.rng is None else [config.rng],
    }
    if config.has_console_device:
        payload = {
            **payload,
            "console": config.console,
            "ports": list(config.ports),
            "hotplug_ports": config.hotplug_ports,
        }
    return encode({**payload, **further})


def config_record(config: MachineConfig) -> Record:
    """Return the record of `config` in a snapshot."""
    return Record(CONFIG, CONFIG_KIND.version, encode_config(config))


def restore_config(fields: Fields) -> MachineConfig:
    """Read a configuration; StateError for one that no machine here can have."""
    kernel = fields.data("kernel", at_most=_MAX_TEXT_BYTES)
    initrd = fields.data("initrd", at_most=_MAX_TEXT_BYTES)
    command_line = fields.data("command_line", at_most=_MAX_TEXT_BYTES)
    ram_bytes, vcpus = fields.number("ram_bytes"), fields.number("vcpus")
    dialect = fields.text("dialect")
    offer, withhold = _names(fields, "offer"), _names(fields, "withhold")
    rng = fields.numbers("rng", at_most=1)
    console, ports, hotplug_ports = _console_device(fields)
    fields.done()
    try:
        return MachineConfig(
            kernel=Path(os.fsdecode(kernel)),
            initrd=Path(os.fsdecode(initrd)) if initrd else None,
            command_line=os.fsdecode(command_line),
            ram_bytes=ram_bytes,
            vcpus=vcpus,
            dialect=dialect,
            offer=offer,
            withhold=withhold,
            rng=rng[0] if rng else None,
            console=console,
            ports=ports,
            hotplug_ports=hotplug_ports,
        )
    except UserError as error:
        raise fields.error("as a whole", f"is invalid: {error}") from error


def _console_device(fields: Fields) -> tuple[str, tuple[str, ...], int]:
    """Return `console`, `ports` and `hotplug_ports`; without a console device, their defaults."""
    if not fields.has("console"):
        return "serial", (), 0
    return fields.text("console"), _names(fields, "ports"), fields.number("hotplug_ports")


def _names(fields: Fields, name: str) -> tuple[str, ...]:
    names = fields.items(name, at_most=_MAX_FEATURES)
    if not all(isinstance(each, str) for each in names):
        raise fields.error(name, "has an item that is not a name")
    return tuple(str(each) for each in names)
