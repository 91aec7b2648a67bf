# SPDX-License-Identifier: Apache-2.0
"""The options of a boot, as data, and the parser of plain command lines.

click's import takes longer than everything else that `pyvmm run` does before the guest's first
instruction. So the options that configure a guest are declared here without it: `run` makes click
options of them (`pyvmm.cli.options.boot_option`), for help, completion and errors, and
`parse_boot` reads a command line that needs none of these. It reports no errors: whatever it does
not understand is left to click.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from devices.balloon.features import OPTIONS as BALLOON_OPTIONS
from pyvmm.config import (
    CONSOLES,
    DEFAULT_HUGEPAGES,
    DEFAULT_RAM_BYTES,
    DIALECTS,
    HUGEPAGES,
)
from pyvmm.errors import UserError
from pyvmm.units import GIB, parse_size

COMPLETION_VARIABLE = "_PYVMM_COMPLETE"
"""The environment variable by which a shell asks click to complete a command line."""
KVM_MODES = ("auto", "host", "lab")
"""The values of --kvm."""


class BootOption:
    """One option, `names` on the command line: the value of `parameter`, which `parse` makes.

    `default` is a text to parse, or None. With `choices`, the value is one of them; with
    `multiple`, the option may be repeated, and the value is a tuple. A `flag` has no text and is
    True if given. `shown` are click's arguments for the help page.
    """

    # No NamedTuple: making one takes 0.3 ms of every start.
    def __init__(
        self,
        *names: str,
        parameter: str,
        parse: Callable[[str], Any] = str,
        default: str | None = None,
        choices: Sequence[str] = (),
        multiple: bool = False,
        flag: bool = False,
        **shown: Any,
    ) -> None:
        self.names = names
        self.parameter = parameter
        self.parse = parse
        self.default = default
        self.choices = choices
        self.multiple = multiple
        self.flag = flag
        self.shown = shown

    def initial(self) -> Any:
        """Return the value without the option."""
        if self.default is not None:
            return self.parse(self.default)
        return () if self.multiple else False if self.flag else None


BOOT_OPTIONS = (
    BootOption(
        "--memory",
        parameter="ram_bytes",
        parse=parse_size,
        default=f"{DEFAULT_RAM_BYTES // GIB}G",
        show_default=True,
        metavar="SIZE",
        help="Guest RAM, such as 512M or 8G; with --incoming, the most that the guest may have.",
    ),
    BootOption(
        "--hugepages",
        parameter="hugepages",
        choices=HUGEPAGES,
        default=DEFAULT_HUGEPAGES,
        show_default=True,
        help=(
            "Back guest RAM with huge pages: transparent ones, reserved ones of hugetlbfs, or none."
        ),
    ),
    BootOption(
        "--cpus",
        parameter="cpus",
        parse=int,
        default="1",
        show_default=True,
        metavar="N",
        help="Number of vCPUs, 1 to 8.",
    ),
    BootOption(
        "--initrd",
        parameter="initrd",
        parse=Path,
        metavar="FILE",
        help="Initramfs to load with the kernel.",
    ),
    BootOption(
        "--append",
        parameter="append",
        default="",
        metavar="TEXT",
        help="Append to the kernel command line.",
    ),
    BootOption(
        "--dialect",
        parameter="dialect",
        choices=DIALECTS,
        show_default="that of IMAGE, else standard",
        help="Balloon protocol.",
    ),
    BootOption(
        "--offer",
        parameter="offer",
        multiple=True,
        metavar="NAME",
        help=f"Offer one more balloon feature: {', '.join(BALLOON_OPTIONS)}.",
    ),
    BootOption(
        "--withhold",
        parameter="withhold",
        multiple=True,
        metavar="NAME",
        help="Do not offer this feature.",
    ),
    BootOption(
        "--rng", parameter="rng", flag=True, help="Give the guest an entropy device, virtio-rng."
    ),
    BootOption(
        "--rng-limit",
        parameter="rng_limit",
        parse=parse_size,
        metavar="SIZE",
        show_default="no limit",
        help="Limit the entropy device to SIZE per second, such as 64K; implies --rng.",
    ),
    BootOption(
        "--console",
        parameter="console",
        choices=CONSOLES,
        default="serial",
        show_default=True,
        help="Device that is this terminal in the guest: ttyS0, or hvc0 of virtio-console.",
    ),
    BootOption(
        "--name",
        parameter="guest_name",
        metavar="NAME",
        show_default="IMAGE and a number",
        help="Name of the guest for 'pyvmm ps' and --vm; no other running guest may have it.",
    ),
    BootOption(
        "--qmp",
        parameter="addresses",
        multiple=True,
        metavar="unix:PATH",
        help="Control socket to create at PATH; it speaks QMP.",
    ),
    BootOption(
        "--kvm",
        parameter="kvm",
        choices=KVM_MODES,
        default="auto",
        show_default=True,
        help="Run on this machine's KVM or in the lab.",
    ),
    BootOption(
        "-v",
        "--verbose",
        parameter="verbose",
        flag=True,
        help="Log every device event on standard error.",
    ),
)
ONLY_BOOT = ("cpus", "dialect", "offer", "withhold", "rng", "rng_limit", "console")
"""The parameters that nothing but a boot takes."""
BY_NAME = {name: option for option in BOOT_OPTIONS for name in option.names}


def parse_boot(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Return the parameters of `pyvmm run IMAGE` with only `BOOT_OPTIONS`; None for all else."""
    if arguments[:1] != ["run"] or COMPLETION_VARIABLE in os.environ:
        return None
    values = {option.parameter: option.initial() for option in BOOT_OPTIONS}
    words = iter(arguments[1:])
    for word in words:
        if not word.startswith("-"):
            if "image" in values:
                return None
            values["image"] = Path(word)
            continue
        name, separator, text = word.partition("=")
        option = BY_NAME.get(name)
        if option is None or (option.flag and separator):
            return None
        if not option.flag and not separator:
            text = next(words, "-")
            if text.startswith("-"):
                return None
        try:
            value = True if option.flag else option.parse(text)
        except (UserError, ValueError):
            return None
        if option.choices and value not in option.choices:
            return None
        values[option.parameter] = (*values[option.parameter], value) if option.multiple else value
    return values if "image" in values else None
