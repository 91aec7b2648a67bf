# SPDX-License-Identifier: Apache-2.0
"""The configuration of a machine: everything that defines the guest's hardware and kernel.

A `MachineConfig` is complete and checked against the limits defined here; the files that it names
have not been opened. It is saved in snapshots and sent ahead of a migrating guest, so that the
machine at the destination is created from the same values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self, get_args

from devices.balloon.features import BY_DIALECT, FeatureSelectionError, offered_features
from pyvmm.errors import UserError
from pyvmm.units import GIB, HUGE_PAGE_BYTES, MIB, format_size

MIN_RAM_BYTES = 64 * MIB
MAX_RAM_BYTES = 16 * GIB
DEFAULT_RAM_BYTES = 1 * GIB
MAX_VCPUS = 8
MAX_RNG_BYTES_PER_S = 1 * GIB
"""Limits and defaults of the parameters of a `MachineConfig`."""
DIALECTS = tuple(BY_DIALECT)
"""Names of the balloon's dialects."""

CONSOLES = ("serial", "virtio")
"""The devices that can be a guest's interactive console."""

HugePages = Literal["transparent", "hugetlbfs", "never"]
"""Huge pages of the host behind a guest's RAM: those that the kernel makes of anonymous memory as
it can, those of hugetlbfs, reserved before the guest starts, or none."""
HUGEPAGES: tuple[HugePages, ...] = get_args(HugePages)
"""All of `HugePages`."""
DEFAULT_HUGEPAGES: HugePages = "transparent"
"""The huge pages of a guest that says nothing else."""

Parameter = Literal[
    "ram_bytes", "vcpus", "dialect", "features", "rng", "console", "ports", "hugepages"
]
"""A parameter of a machine that has a limit."""


class InvalidConfiguration(UserError):
    """No machine can have this value of `parameter`."""

    def __init__(self, parameter: Parameter, message: str) -> None:
        super().__init__(message)
        self.parameter = parameter


class MachineConfig:
    """The parameters of one machine, which do not change. Raises `InvalidConfiguration`."""

    # No dataclass: importing `dataclasses` (with `inspect`) takes 8 ms of every start.
    def __init__(
        self,
        kernel: Path,
        initrd: Path | None,
        command_line: str,
        ram_bytes: int,
        vcpus: int,
        dialect: str,
        offer: tuple[str, ...] = (),
        withhold: tuple[str, ...] = (),
        rng: int | None = None,
        console: str = "serial",
        ports: tuple[str, ...] = (),
        hotplug_ports: int = 0,
        hugepages: HugePages = DEFAULT_HUGEPAGES,
    ) -> None:
        self.kernel = kernel
        """Image of the kernel: a bzImage or an ELF file."""
        self.initrd = initrd
        """Initramfs, if there is one."""
        self.command_line = command_line
        """The kernel's command line."""
        self.ram_bytes = ram_bytes
        """Size of RAM, whole MiB."""
        self.vcpus = vcpus
        """Number of vCPUs."""
        self.dialect = dialect
        """Dialect of the balloon, one of `DIALECTS`."""
        self.offer = offer
        """Balloon features offered in addition to the dialect's default."""
        self.withhold = withhold
        """Balloon features of the dialect's default that are not offered."""
        self.rng = rng
        """Most bytes per second of the entropy device, 0 for no limit; None for no such device."""
        self.console = console
        """The interactive console, one of `CONSOLES`; "virtio" is port 0 of the console device."""
        self.ports = ports
        """Names of further ports of the console device."""
        self.hotplug_ports = hotplug_ports
        """Ports of the console device that can be plugged in while the guest runs."""
        self.hugepages = hugepages
        """Huge pages behind RAM. The guest does not see them, so they belong to the host: they are
        not saved, and a guest that is restored or migrated gets those of its new host."""
        self._check()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MachineConfig) and vars(self) == vars(other)

    def __repr__(self) -> str:
        parameters = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({parameters})"

    def changed(self, **parameters: Any) -> Self:
        """Return a copy with other `parameters`. Raises `InvalidConfiguration`."""
        return type(self)(**{**vars(self), **parameters})

    def _check(self) -> None:
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
                f"there is no balloon dialect {self.dialect!r}, only {', '.join(DIALECTS)}",
            )
        self._check_hugepages()
        if self.rng is not None and not 0 <= self.rng <= MAX_RNG_BYTES_PER_S:
            raise InvalidConfiguration(
                "rng",
                f"an entropy device cannot be limited to {self.rng} bytes per second, only to"
                f" 1 to {MAX_RNG_BYTES_PER_S}",
            )
        if self.console not in CONSOLES:
            raise InvalidConfiguration(
                "console",
                f"a guest cannot have a {self.console!r} console, only {' or '.join(CONSOLES)}",
            )
        if self.ports or self.hotplug_ports:
            self._check_ports()
        try:
            _ = self.balloon_features  # checks the feature names
        except FeatureSelectionError as error:
            raise InvalidConfiguration("features", str(error)) from None

    @property
    def has_console_device(self) -> bool:
        """Return whether the machine has a virtio-console."""
        return self.console == "virtio" or bool(self.ports or self.hotplug_ports)

    def _check_hugepages(self) -> None:
        if self.hugepages not in HUGEPAGES:
            raise InvalidConfiguration(
                "hugepages",
                f"RAM cannot be in {self.hugepages!r} huge pages, only {', '.join(HUGEPAGES)}",
            )
        if self.hugepages == "hugetlbfs" and self.ram_bytes % HUGE_PAGE_BYTES:
            raise InvalidConfiguration(
                "hugepages",
                f"a guest in huge pages cannot have {format_size(self.ram_bytes)} of RAM, only a"
                f" multiple of {format_size(HUGE_PAGE_BYTES)}",
            )

    def _check_ports(self) -> None:
        # 1 module, for machines with ports only.
        from devices.console.names import CONSOLE_NAME, MAX_NAME_BYTES, MAX_PORTS, is_port_name

        if self.hotplug_ports < 0 or len(self.ports) + self.hotplug_ports >= MAX_PORTS:
            raise InvalidConfiguration(
                "ports",
                f"a guest cannot have {len(self.ports)} ports and {self.hotplug_ports} to plug in,"
                f" only {MAX_PORTS - 1} in all",
            )
        for index, name in enumerate(self.ports):
            if not is_port_name(name) or name == CONSOLE_NAME:
                raise InvalidConfiguration(
                    "ports",
                    f"a port cannot be named {name!r}, only by a file name of up to"
                    f" {MAX_NAME_BYTES} bytes without spaces that is not {CONSOLE_NAME!r}",
                )
            if name in self.ports[:index]:
                raise InvalidConfiguration("ports", f"two ports are named {name!r}")

    @property
    def balloon_features(self) -> int:
        """Return the feature bits that the balloon offers."""
        return offered_features(self.dialect, self.offer, self.withhold)
