# SPDX-License-Identifier: Apache-2.0
"""The configuration of a machine: everything that defines the guest's hardware and kernel.

A `MachineConfig` is complete and checked against the limits defined here; the files that it names
have not been opened. It is saved in snapshots and sent ahead of a migrating guest, so that the
machine at the destination is created from the same values.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from devices.balloon.features import BY_DIALECT, FeatureSelectionError, offered_features
from pyvmm.errors import UserError
from pyvmm.units import GIB, MIB, format_size

MIN_RAM_BYTES = 64 * MIB
MAX_RAM_BYTES = 16 * GIB
DEFAULT_RAM_BYTES = 1 * GIB
MAX_VCPUS = 8
MAX_RNG_BYTES_PER_S = 1 * GIB
"""Limits and defaults of the parameters of a `MachineConfig`."""
DIALECTS = tuple(BY_DIALECT)
"""Names of the balloon's dialects."""

Parameter = Literal["ram_bytes", "vcpus", "dialect", "features", "rng"]
"""A parameter of a machine that has a limit."""


class InvalidConfiguration(UserError):
    """No machine can have this value of `parameter`."""

    def __init__(self, parameter: Parameter, message: str) -> None:
        super().__init__(message)
        self.parameter = parameter


@dataclass(frozen=True)
class MachineConfig:
    """The parameters of one machine. Raises `InvalidConfiguration`."""

    kernel: Path
    """Image of the kernel: a bzImage or an ELF file."""
    initrd: Path | None
    command_line: str
    ram_bytes: int
    """Size of RAM, whole MiB."""
    vcpus: int
    dialect: str
    """Dialect of the balloon, one of `DIALECTS`."""
    offer: tuple[str, ...] = ()
    """Balloon features offered in addition to the dialect's default."""
    withhold: tuple[str, ...] = ()
    """Balloon features of the dialect's default that are not offered."""
    rng: int | None = None
    """Most bytes per second of the entropy device, 0 for no limit; None for no such device."""

    def __post_init__(self) -> None:
        if self.ram_bytes % MIB or not MIN_RAM_BYTES <= self.ram_bytes <= MAX_RAM_BYTES:
            whole_mib = self.ram_bytes % MIB == 0
            size = format_size(self.ram_bytes) if whole_mib else f"{self.ram_bytes} bytes"
            raise InvalidConfiguration(
                "ram_bytes",
                f"a guest cannot have {size} of RAM, only whole MiB from"
                f" {format_size(MIN_RAM_BYTES)} to {format_size(MAX_RAM_BYTES)}",
            )
        if not 1 <= self.vcpus <= MAX_VCPUS:
            raise InvalidConfiguration(
                "vcpus", f"a guest cannot have {self.vcpus} vCPUs, only 1 to {MAX_VCPUS}"
            )
        if self.dialect not in DIALECTS:
            raise InvalidConfiguration(
                "dialect",
                f"there is no balloon dialect {self.dialect!r}, only {' and '.join(DIALECTS)}",
            )
        if self.rng is not None and not 0 <= self.rng <= MAX_RNG_BYTES_PER_S:
            raise InvalidConfiguration(
                "rng",
                f"an entropy device cannot be limited to {self.rng} bytes per second, only to"
                f" 1 to {MAX_RNG_BYTES_PER_S}",
            )
        try:
            _ = self.balloon_features  # checks the feature names
        except FeatureSelectionError as error:
            raise InvalidConfiguration("features", str(error)) from None

    @property
    def balloon_features(self) -> int:
        """Return the feature bits that the balloon offers."""
        return offered_features(self.dialect, self.offer, self.withhold)
