# SPDX-License-Identifier: Apache-2.0
"""What a snapshot says of itself: the configuration of its machine, and where its pages went."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from devices.state import Fields, Payload, encode
from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.memory.layout import MAX_RAM_BYTES
from pyvmm.snapshot.format import CONFIG, REPORT, VERSION
from pyvmm.state.records import Record
from pyvmm_native import PAGE_BYTES

_PAGES_LIMIT = MAX_RAM_BYTES // PAGE_BYTES + 1
_MAX_TEXT_BYTES = 1 << 16
_MAX_FEATURES = 64


@dataclass(frozen=True)
class PageReport:
    """Every page of RAM, by what became of it; the first four add up to all of them."""

    stored: int
    """In the file."""
    zero: int
    """Touched, in use as far as is known, and zero throughout."""
    unused: int
    """Touched, and unused by the guest's own word."""
    absent: int
    """Without memory behind them: never touched, or in the balloon."""
    ballooned: int
    """How many of those are in the balloon, as the guest counts."""
    asked: str
    """How the question for unused pages went."""

    def record(self) -> Record:
        return Record(REPORT, VERSION, encode(asdict(self)))

    @property
    def ram(self) -> int:
        return self.stored + self.zero + self.unused + self.absent

    @classmethod
    def restore(cls, fields: Fields) -> PageReport:
        """Raises StateError."""
        names = ("stored", "zero", "unused", "absent", "ballooned")
        counts = {name: fields.number(name, below=_PAGES_LIMIT) for name in names}
        report = cls(asked=fields.text("asked"), **counts)
        fields.done()
        return report


def config_record(config: MachineConfig) -> Record:
    """The record that says what machine it was."""
    payload: Payload = {
        "kernel": os.fsencode(config.kernel),
        "initrd": os.fsencode(config.initrd) if config.initrd else b"",
        "command_line": os.fsencode(config.command_line),
        "ram_bytes": config.ram_bytes,
        "vcpus": config.vcpus,
        "dialect": config.dialect,
        "offer": list(config.offer),
        "withhold": list(config.withhold),
    }
    return Record(CONFIG, VERSION, encode(payload))


def restore_config(fields: Fields) -> MachineConfig:
    """Raises StateError for a machine that cannot be."""
    kernel = fields.data("kernel", at_most=_MAX_TEXT_BYTES)
    initrd = fields.data("initrd", at_most=_MAX_TEXT_BYTES)
    command_line = fields.data("command_line", at_most=_MAX_TEXT_BYTES)
    ram_bytes, vcpus = fields.number("ram_bytes"), fields.number("vcpus")
    dialect = fields.text("dialect")
    offer, withhold = _names(fields, "offer"), _names(fields, "withhold")
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
        )
    except UserError as error:
        raise fields.error("as a whole", f"is no machine: {error.message}") from error


def _names(fields: Fields, name: str) -> tuple[str, ...]:
    names = fields.items(name, at_most=_MAX_FEATURES)
    if not all(isinstance(each, str) for each in names):
        raise fields.error(name, "has something in it that is no name")
    return tuple(str(each) for each in names)
