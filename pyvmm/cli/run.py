# SPDX-License-Identifier: Apache-2.0
"""`pyvmm run`: one guest, its console on this terminal, ended by the guest or by the person.

The options become a `MachineConfig`, a snapshot or an address to wait at, checked here; then either
this process runs the machine or, where KVM is missing or unfit, the very same command line is run
again in the lab.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from devices.balloon.features import OPTIONS
from pyvmm.cli.asyncio_without_ssl import asyncio
from pyvmm.cli.migration_options import SECURITY_OPTIONS, security, security_options
from pyvmm.config import DEFAULT_RAM_BYTES, DIALECTS, config_for_image
from pyvmm.errors import UserError
from pyvmm.lab.choose import KVM_MODES, Choice, KvmMode, choose_kvm
from pyvmm.units import MIB, parse_size

if TYPE_CHECKING:
    from pyvmm.snapshot.reader import SnapshotFile
    from pyvmm.sockets.addresses import Address
    from pyvmm.sockets.tls import Security

LAB_OVERHEAD_MIB = 2048
"""What the lab's own system, Python and pyvmm need beside guest RAM, with room to spare."""

OF_ANY_GUEST = ("addresses", "kvm", "verbose", "help")
"""What can be said also of a guest that was made elsewhere, which says itself what guest it is."""


@click.command()
@click.argument("image", type=click.Path(path_type=Path), required=False)
@click.option(
    "--kernel",
    type=click.Path(path_type=Path),
    help="Kernel to boot, instead of IMAGE: a bzImage such as /boot/vmlinuz-*, or a vmlinux.",
)
@click.option(
    "--memory",
    default=f"{DEFAULT_RAM_BYTES // MIB}M",
    show_default=True,
    metavar="SIZE",
    help="Guest RAM, such as 512M or 8G; with --incoming, how much the guest may have at most.",
)
@click.option("--cpus", type=int, default=1, show_default=True, help="Virtual processors, 1 to 8.")
@click.option(
    "--initrd", type=click.Path(path_type=Path), help="Initramfs to load beside the kernel."
)
@click.option("--append", default="", metavar="TEXT", help="More kernel command line.")
@click.option(
    "--dialect",
    type=click.Choice(DIALECTS),
    help="Balloon protocol [default: what IMAGE says, else standard].",
)
@click.option(
    "--offer",
    multiple=True,
    metavar="NAME",
    help=f"Let the balloon offer one more feature: {', '.join(OPTIONS)}.",
)
@click.option("--withhold", multiple=True, metavar="NAME", help="Do not offer this one.")
@click.option(
    "--restore",
    type=click.Path(path_type=Path),
    help="Go on from a snapshot, which says itself what guest it is.",
)
@click.option(
    "--incoming",
    metavar="ADDRESS",
    help="Wait for a guest that 'pyvmm migrate' sends to tcp:HOST:PORT or unix:PATH.",
)
@security_options
@click.option(
    "--qmp",
    "addresses",
    multiple=True,
    metavar="unix:PATH",
    help="Listen for control commands on a socket at PATH.",
)
@click.option(
    "--kvm",
    type=click.Choice(KVM_MODES),
    default="auto",
    show_default=True,
    help="Run on this machine's KVM, or in the lab.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log every device event on standard error.")
def run(
    image: Path | None,
    kernel: Path | None,
    memory: str,
    cpus: int,
    initrd: Path | None,
    append: str,
    dialect: str | None,
    offer: Sequence[str],
    withhold: Sequence[str],
    restore: Path | None,
    incoming: str | None,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    insecure: bool,
    addresses: Sequence[str],
    kvm: KvmMode,
    verbose: bool,
) -> int:
    """Boot the Linux in IMAGE, a guest.img, or any x86-64 kernel with --kernel.

    Its serial console is this terminal; Ctrl-A x ends pyvmm, Ctrl-A h lists the keys. The exit
    status is 0 when the guest powers off or reboots, 1 when it crashes, 2 when something given
    here cannot be used.

    \b
    Examples:
      pyvmm run guest.img
      pyvmm run guest.img --memory 8G --cpus 4 --qmp unix:/tmp/vm.sock
      pyvmm run --kernel /boot/vmlinuz --initrd /boot/initrd.img --append break=top
      pyvmm run guest.img --append 'pyvmm.run="pattern alloc 64 fill 1 verify 1"'
      pyvmm run --restore vm.snap
      pyvmm run --incoming unix:/tmp/m --memory 8G
    """
    from pyvmm.boot.loader import read_boot_files
    from pyvmm.sockets.addresses import parse_unix_address

    level = logging.DEBUG if verbose else logging.WARNING
    logging.basicConfig(level=level, format="pyvmm: %(message)s")
    sockets = [parse_unix_address(address) for address in addresses]
    if incoming is not None:
        _refuse_beside("incoming", "memory", *SECURITY_OPTIONS)
        protection = security(tls_ca, tls_cert, tls_key, insecure)
        return _run_incoming(incoming, protection, parse_size(memory), sockets, kvm)
    for shown in _given(SECURITY_OPTIONS):
        raise UserError(f"{shown} is only for a guest that comes here", "give --incoming, too")
    snapshot = _open(restore) if restore is not None else None
    config = (
        snapshot.config
        if snapshot
        else config_for_image(
            _one_of(image, kernel),
            initrd=initrd,
            append=append,
            ram_bytes=parse_size(memory),
            vcpus=cpus,
            dialect=dialect,
            offer=offer,
            withhold=withhold,
        )
    )
    if snapshot is None:
        read_boot_files(config)  # what cannot be booted is said before anything is started for it
    if choose_kvm(kvm) is Choice.LAB:
        return _run_in_lab(config.ram_bytes, sockets)
    from pyvmm.cli.terminal_run import run_machine

    return asyncio.run(run_machine(config, sockets, snapshot))


def _open(restore: Path) -> SnapshotFile:
    """The snapshot to go on from; whatever else describes a guest must not be there."""
    from pyvmm.snapshot.reader import SnapshotFile
    from pyvmm.state.parts import KINDS

    _refuse_beside("restore")
    return SnapshotFile(restore, KINDS)


def _refuse_beside(option: str, *allowed: str) -> None:
    """The guest of --`option` says itself what it is: what else does so must not be there."""
    context = click.get_current_context()
    names = {parameter.name or "" for parameter in context.command.get_params(context)}
    for shown in _given(names - {option, *allowed, *OF_ANY_GUEST}):
        raise UserError(
            f"--{option} and {shown} are both given",
            "that guest says itself what it is; leave the other away",
        )


def _given(names: Collection[str]) -> Iterator[str]:
    """Those of these parameters that were given, as people write them."""
    context = click.get_current_context()
    for parameter in context.command.get_params(context):
        name = parameter.name or ""
        given = context.get_parameter_source(name) is not ParameterSource.DEFAULT
        if given and name in names:
            option = parameter.param_type_name == "option"
            yield parameter.opts[0] if option else parameter.human_readable_name


def _one_of(image: Path | None, kernel: Path | None) -> Path:
    """IMAGE and --kernel name the same thing; exactly one of them must be there."""
    given = [path for path in (image, kernel) if path is not None]
    if len(given) != 1:
        message = "both IMAGE and --kernel are given" if given else "there is no kernel to boot"
        raise UserError(message, "give either IMAGE or --kernel FILE")
    return given[0]


def _run_incoming(
    incoming: str, protection: Security, at_most_bytes: int, sockets: Sequence[Path], kvm: KvmMode
) -> int:
    """Wait for a guest that another pyvmm sends, and run it."""
    from pyvmm.sockets.addresses import parse_migration_address
    from pyvmm.sockets.listener import MigrationListener

    address = parse_migration_address(incoming)
    if choose_kvm(kvm) is Choice.LAB:
        return _run_in_lab(at_most_bytes, sockets, address, protection)
    from pyvmm.cli.terminal_run import run_incoming

    listener = MigrationListener(address, protection)
    return asyncio.run(run_incoming(listener, at_most_bytes, sockets))


def _run_in_lab(
    ram_bytes: int,
    sockets: Sequence[Path],
    incoming: Address | None = None,
    protection: Security | None = None,
) -> int:
    """Run our own command line again, in the lab, for a guest of at most that size."""
    from pyvmm.lab.run import MIN_MEMORY_MIB, run_in_lab

    memory_mib = max(MIN_MEMORY_MIB, ram_bytes // MIB + LAB_OVERHEAD_MIB)
    return run_in_lab(
        [sys.executable, "-m", "pyvmm", *sys.argv[1:]],
        memory_mib=memory_mib,
        sockets=sockets,
        incoming=incoming,
        security=protection,
    )
