# SPDX-License-Identifier: Apache-2.0
"""The configuration of a guest that runs the guest agent.

The agent comes into the guest by its initramfs, its ports by the configuration, and it is started
by a parameter of the kernel (see `pyvmm.boot.agent_plan`). Every session of a machine with the
agent's port can run commands, also one that is restored or has arrived by a migration.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict, Unpack

from pyvmm.boot.agent_plan import plan_agent
from pyvmm.boot.image_config import config_for_image
from pyvmm.boot.overlay import PutPath, put_archive
from pyvmm.config import DEFAULT_HUGEPAGES, DEFAULT_RAM_BYTES, HugePages
from pyvmm.guest_agent.client import STREAM_PORT, initial_ports
from pyvmm.guest_agent.messages import CONTROL_PORT, STREAMS

if TYPE_CHECKING:
    from pyvmm.boot.agent_plan import ModulesFrom
    from pyvmm.config import MachineConfig

DEFAULT_COMMANDS = 4
"""Commands that can run at once; a guest sets up the ports of all of them when it boots."""
QUIET = "quiet"
"""Parameter of the kernel: every character of its log costs two exits of the guest."""


class GuestOptions(TypedDict, total=False):
    """The options of a guest with the agent; all are optional."""

    initrd: Path | None
    """Initramfs of another kernel than a guest.img."""
    modules: ModulesFrom
    """Drivers for another kernel than a guest.img: "auto", "no", a directory or a Debian package.

    "auto", the default, finds those that are installed for the kernel's release.
    """
    put: Sequence[tuple[Path, str]]
    """Files and directories of the host, each with its path in the guest."""
    commands: int
    """Commands that can run at once, 1 to 10, by default 4; each makes the boot a little longer."""
    append: str
    """Further parameters of the kernel."""
    ram_bytes: int
    """Size of RAM, whole MiB; 1 GiB by default."""
    vcpus: int
    """Number of processors, 1 by default."""
    dialect: str | None
    """Dialect of the balloon; that of a guest.img by default, else "standard"."""
    offer: Sequence[str]
    """Balloon features to offer in addition."""
    withhold: Sequence[str]
    """Balloon features not to offer."""
    rng: int | None
    """Most bytes per second of the entropy device, 0 for no limit; None, the default, for none."""
    hugepages: HugePages
    """Huge pages behind RAM: "transparent", the default, "hugetlbfs" or "never"."""


class ConfigWithAgent(NamedTuple):
    """A `config`, and the archive `overlay` that its guest needs in its initramfs."""

    config: MachineConfig
    overlay: bytes


def config_with_agent(image: Path, **options: Unpack[GuestOptions]) -> ConfigWithAgent:
    """Return the configuration of a guest of `image` in which `GuestSession.run` works.

    The agent is the guest's only init. Raises the errors of `config_for_image`, and `UserError` if
    the agent, the kernel's modules or the files for the guest are missing.
    """
    initrd = options.get("initrd")
    plan = plan_agent(image, initrd, options.get("modules", "auto"), command=True)
    assert plan is not None  # with `command`
    more_commands = options.get("commands", DEFAULT_COMMANDS) - 1
    config = config_for_image(
        image,
        initrd=initrd,
        append=" ".join(filter(None, (plan.append, QUIET, options.get("append", "")))),
        ram_bytes=options.get("ram_bytes", DEFAULT_RAM_BYTES),
        vcpus=options.get("vcpus", 1),
        dialect=options.get("dialect"),
        offer=options.get("offer", ()),
        withhold=options.get("withhold", ()),
        rng=options.get("rng"),
        hugepages=options.get("hugepages", DEFAULT_HUGEPAGES),
        ports=initial_ports(),
        hotplug_ports=more_commands * STREAMS,
    )
    put = [PutPath(Path(host), guest) for host, guest in options.get("put", ())]
    return ConfigWithAgent(config, plan.archive + put_archive(put, config.ram_bytes))


def has_agent(config: MachineConfig) -> bool:
    """Return whether a machine of `config` has the agent's port."""
    return CONTROL_PORT in config.ports


def commands_at_once(config: MachineConfig) -> int:
    """Return the number of commands for which a machine of `config` can have ports."""
    prefix = STREAM_PORT.format("")
    streams = [port for port in config.ports if port.removeprefix(prefix).isdecimal()]
    return (len(streams) + config.hotplug_ports) // STREAMS
