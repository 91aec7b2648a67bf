# SPDX-License-Identifier: Apache-2.0
"""`pyvmm run`: run one guest with its console on this terminal.

The options select a configuration to boot, a snapshot to restore or an address to wait at for a
migration; errors in them are reported before anything is started. Then this process runs the
machine or, where KVM is missing or unfit, runs the same command line again in the lab.

A module that only some guests need is imported late; each such import names the start-up time it
saves (tests/project/test_imports.py keeps a boot free of them).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from devices.balloon.features import OPTIONS
from pyvmm.boot.image_config import config_for_image
from pyvmm.cli.announced_run import announced, name_option
from pyvmm.cli.command_options import (
    COMMAND_KEY,
    ONLY_WITH_COMMAND,
    RunCommand,
    command_options,
)
from pyvmm.cli.errors import CommandError
from pyvmm.cli.huge_pages import hugepages_option, prepare_huge_pages
from pyvmm.cli.options import (
    SECURITY_PARAMETERS,
    given_parameters,
    kvm_option,
    parse_size_value,
    security,
    security_options,
)
from pyvmm.cli.record_options import RECORD_PARAMETERS, RecordOptions, record_options, recording_of
from pyvmm.config import CONSOLES, DEFAULT_RAM_BYTES, DIALECTS
from pyvmm.lab.choose import KVM_MODES, KvmMode, KvmProvider, choose_kvm
from pyvmm.standard_streams.log import log_on_stderr
from pyvmm.units import GIB

if TYPE_CHECKING:
    from pyvmm.cli.command_request import GuestAdditions
    from pyvmm.cli.console.ports import PortOption
    from pyvmm.config import HugePages, MachineConfig
    from pyvmm.snapshot.reader import SnapshotFile
    from pyvmm.sockets.tls import Security

NOT_CONFIGURATION = (
    *("addresses", "guest_name", "port_values", "hugepages", "kvm", "verbose", "help"),
    *RECORD_PARAMETERS,
)
"""Parameters that do not configure the guest; valid with a snapshot or an incoming migration."""


@click.command(cls=RunCommand)
@click.argument("image", type=click.Path(path_type=Path), required=False)
@click.option(
    "--kernel",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Kernel to boot, instead of IMAGE: a bzImage such as /boot/vmlinuz-*, or a vmlinux.",
)
@click.option(
    "--memory",
    "ram_bytes",
    type=parse_size_value,
    default=f"{DEFAULT_RAM_BYTES // GIB}G",
    show_default=True,
    metavar="SIZE",
    help="Guest RAM, such as 512M or 8G; with --incoming, the most that the guest may have.",
)
@hugepages_option
@click.option(
    "--cpus",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="Number of vCPUs, 1 to 8.",
)
@click.option(
    "--initrd",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Initramfs to load with the kernel.",
)
@click.option("--append", default="", metavar="TEXT", help="Append to the kernel command line.")
@command_options
@click.option(
    "--dialect",
    type=click.Choice(DIALECTS),
    show_default="that of IMAGE, else standard",
    help="Balloon protocol.",
)
@click.option(
    "--offer",
    multiple=True,
    metavar="NAME",
    help=f"Offer one more balloon feature: {', '.join(OPTIONS)}.",
)
@click.option("--withhold", multiple=True, metavar="NAME", help="Do not offer this feature.")
@click.option("--rng", is_flag=True, help="Give the guest an entropy device, virtio-rng.")
@click.option(
    "--rng-limit",
    type=parse_size_value,
    metavar="SIZE",
    show_default="no limit",
    help="Limit the entropy device to SIZE per second, such as 64K; implies --rng.",
)
@click.option(
    "--console",
    type=click.Choice(CONSOLES),
    default="serial",
    show_default=True,
    help="Device that is this terminal in the guest: ttyS0, or hvc0 of virtio-console.",
)
@click.option(
    "--port",
    "port_values",
    multiple=True,
    metavar="NAME=ADDRESS",
    help=(
        "Give the guest a port called NAME of virtio-console, and connect it to the clients of"
        " unix:PATH, one at a time, or append its output to file:PATH."
    ),
)
@click.option(
    "--restore",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Resume a snapshot; it holds the guest's configuration.",
)
@click.option(
    "--incoming",
    metavar="ADDRESS",
    help="Wait at tcp:HOST:PORT or unix:PATH for a guest that 'pyvmm migrate' sends.",
)
@security_options
@name_option
@click.option(
    "--qmp",
    "addresses",
    multiple=True,
    metavar="unix:PATH",
    help="Control socket to create at PATH; it speaks QMP.",
)
@record_options
@kvm_option(KVM_MODES)
@click.option("-v", "--verbose", is_flag=True, help="Log every device event on standard error.")
def run(
    image: Path | None,
    kernel: Path | None,
    ram_bytes: int,
    hugepages: HugePages,
    cpus: int,
    initrd: Path | None,
    append: str,
    dialect: str | None,
    offer: Sequence[str],
    withhold: Sequence[str],
    rng: bool,
    rng_limit: int | None,
    console: str,
    port_values: Sequence[str],
    restore: Path | None,
    incoming: str | None,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    insecure: bool,
    guest_name: str | None,
    addresses: Sequence[str],
    kvm: KvmMode,
    verbose: bool,
    **guest_options: Any,
) -> int:
    """Boot the Linux guest in IMAGE, a guest.img, or any x86-64 kernel with --kernel.

    The guest's console is this terminal; Ctrl-A x ends pyvmm, Ctrl-A h lists the keys. With a
    COMMAND, the guest runs that instead, with the standard streams and the exit status of pyvmm.

    \b
    Examples:
      pyvmm run guest.img
      pyvmm run guest.img --memory 8G --cpus 4 --qmp unix:/tmp/vm.sock
      pyvmm run guest.img -- free -m
      pyvmm run guest.img --put test.sh --get results::. -- sh test.sh < input > output
      pyvmm run --kernel /boot/vmlinuz --memory 512M -- uname -r
      pyvmm run --kernel /boot/vmlinuz --initrd /boot/initrd.img --append break=top
      pyvmm run guest.img --append 'pyvmm.run="pattern alloc 64 fill 1 verify 1"'
      pyvmm run guest.img --console virtio --port data=unix:/tmp/data.sock
      pyvmm run --restore vm.snap
      pyvmm run --incoming unix:/tmp/m --memory 8G
      pyvmm run guest.img --record boot.rec

    The exit status is 0 when the guest powers off or reboots, 1 when it crashes or its output
    cannot be written, 2 when an option or a file cannot be used, 128 + N when signal N ended it.
    With a COMMAND it is that of the command, 128 + N when signal N ended it, 127 if the guest does
    not have it, 126 if it cannot be executed, 124 after --timeout, and 125 if pyvmm or the guest
    fails; --status-file tells these from the command's own.
    """
    log_on_stderr(logging.DEBUG if verbose else logging.WARNING)
    command = click.get_current_context().meta.get(COMMAND_KEY, ())
    sockets = _socket_paths(addresses) if addresses else []
    ports = _ports(port_values) if port_values else []
    record = recording_of(guest_options)
    if not command or incoming is not None or restore is not None:
        _refuse_command(command)
    if incoming is not None:
        _refuse_configuration("incoming", "ram_bytes", *SECURITY_PARAMETERS)
        protection = security(tls_ca, tls_cert, tls_key, insecure)
        return _run_incoming(
            incoming, protection, ram_bytes, hugepages, guest_name, sockets, ports, record, kvm
        )
    for shown in given_parameters(SECURITY_PARAMETERS):
        raise CommandError(f"{shown} applies only to an incoming guest", "add --incoming ADDRESS")
    if restore is not None:
        snapshot = _open(restore)
        config = replace(snapshot.config, hugepages=hugepages)
        return _run_vm(config, snapshot, guest_name, sockets, ports, record, kvm)
    boot_image = _one_of(image, kernel)
    additions = None
    if command or kernel is not None or guest_options["put_values"]:
        # Late: saves 9 ms for a guest.img with its console on this terminal.
        from pyvmm.cli.command_request import read_additions

        additions = read_additions(boot_image, initrd, ram_bytes, command, guest_options)
        append = f"{additions.append} {append}".strip()
    config = config_for_image(
        boot_image,
        initrd=initrd,
        append=append,
        ram_bytes=ram_bytes,
        vcpus=cpus,
        dialect=dialect,
        offer=offer,
        withhold=withhold,
        rng=_rng_rate(rng, rng_limit),
        console=console,
        ports=[*(additions.ports if additions else ()), *(port.name for port in ports)],
        hugepages=hugepages,
    )
    # Late: saves 6 ms with --restore and --incoming.
    from pyvmm.boot.loader import read_boot_files

    # Reports unusable files before the lab or a machine starts.
    read_boot_files(config, additions.overlay if additions else b"")
    return _run_vm(config, None, guest_name, sockets, ports, record, kvm, additions)


def _run_vm(
    config: MachineConfig,
    snapshot: SnapshotFile | None,
    name: str | None,
    sockets: Sequence[Path],
    ports: Sequence[PortOption],
    record: RecordOptions | None,
    kvm: KvmMode,
    additions: GuestAdditions | None = None,
) -> int:
    """Boot the VM of `config`, or restore it from `snapshot`, where KVM works, and run it."""
    command = additions.command if additions else None
    overlay = additions.overlay if additions else b""
    with announced(name, snapshot.path if snapshot else config.kernel, config.ram_bytes) as guest:
        # With a command, standard error output is the command's.
        if choose_kvm(kvm, quiet=command is not None) is KvmProvider.LAB:
            # Late: saves 23 ms (the lab) where KVM is fit.
            from pyvmm.cli.lab import run_again_in_lab

            host_paths = additions.host_paths if additions else ()
            return run_again_in_lab(config.ram_bytes, guest, sockets, ports, host_paths)
        prepare_huge_pages(config.hugepages, config.ram_bytes)
        if snapshot is not None:
            # Late: saves 30 ms (asyncio) without --restore.
            from pyvmm.cli.terminal_run import run_restored

            return run_restored(config, snapshot, sockets, ports, record, guest)
        # Late: saves 17 ms (the machine) where the lab runs it.
        from pyvmm.cli.boot_run import boot_on_terminal, boot_with_command

        if command is not None:
            return boot_with_command(config, overlay, command, sockets, ports, record, guest)
        return boot_on_terminal(config, overlay, sockets, ports, record, guest)


def _rng_rate(rng: bool, bytes_per_s: int | None) -> int | None:
    """Return the configuration of the entropy device that the two options ask for."""
    if bytes_per_s is None:
        return 0 if rng else None
    if not bytes_per_s:
        raise CommandError("--rng-limit 0 would supply nothing", "give --rng for no limit")
    return bytes_per_s


def _ports(values: Sequence[str]) -> list[PortOption]:
    """Return the ports of --port. Raises `UserError`."""
    # Late: saves 11 modules without --port.
    from pyvmm.cli.console.ports import parse_ports

    return parse_ports(values)


def _socket_paths(addresses: Sequence[str]) -> list[Path]:
    """Return the paths of control sockets; raises `UserError` for an invalid address."""
    # Late: saves 0.7 ms without --qmp.
    from pyvmm.sockets.addresses import parse_unix_address

    return [parse_unix_address(address) for address in addresses]


def _open(restore: Path) -> SnapshotFile:
    """Open the snapshot to resume; raises `CommandError` if options configure a guest as well."""
    # Late: saves 10 ms without --restore.
    from pyvmm.files.replacement import remove_abandoned
    from pyvmm.machine.catalogue import part_kinds
    from pyvmm.snapshot.reader import SnapshotFile

    _refuse_configuration("restore")
    snapshot = SnapshotFile(restore, part_kinds())
    remove_abandoned(restore.parent)  # of snapshots whose writer was killed
    return snapshot


def _refuse_configuration(option: str, *allowed: str) -> None:
    """Raise `CommandError` if a parameter not `allowed` configures the guest of --`option`."""
    context = click.get_current_context()
    names = {parameter.name or "" for parameter in context.command.get_params(context)}
    for shown in given_parameters(names - {option, *allowed, *NOT_CONFIGURATION}):
        raise CommandError(
            f"--{option} and {shown} cannot be combined",
            f"leave out {shown}: the guest of --{option} brings its own configuration",
        )


def _refuse_command(command: Sequence[str]) -> None:
    """Raise `CommandError` for a command that cannot run, or for an option that needs one."""
    if command:
        raise CommandError(
            "a command cannot run in a guest that runs already",
            "leave out -- COMMAND, or boot an IMAGE",
        )
    for shown in given_parameters(ONLY_WITH_COMMAND):
        raise CommandError(f"{shown} applies only to a command", "add -- COMMAND")


def _one_of(image: Path | None, kernel: Path | None) -> Path:
    """Return the one kernel that IMAGE or --kernel names. Raises `CommandError`."""
    given = [path for path in (image, kernel) if path is not None]
    if len(given) != 1:
        message = "both IMAGE and --kernel are given" if given else "no kernel to boot is given"
        raise CommandError(message, "give either IMAGE or --kernel FILE")
    return given[0]


def _run_incoming(
    incoming: str,
    protection: Security,
    max_ram_bytes: int,
    hugepages: HugePages,
    name: str | None,
    sockets: Sequence[Path],
    ports: Sequence[PortOption],
    record: RecordOptions | None,
    kvm: KvmMode,
) -> int:
    """Wait for a guest that another pyvmm sends, and run it."""
    # Late: saves 9 ms (ssl) without --incoming.
    from pyvmm.sockets.addresses import parse_migration_address
    from pyvmm.sockets.listener import MigrationListener

    address = parse_migration_address(incoming)
    with announced(name, None, max_ram_bytes, address) as guest:
        if choose_kvm(kvm) is KvmProvider.LAB:
            # Late: saves 23 ms (the lab) where KVM is fit.
            from pyvmm.cli.lab import run_again_in_lab

            return run_again_in_lab(
                max_ram_bytes, guest, sockets, ports, incoming=address, security=protection
            )
        prepare_huge_pages(hugepages, max_ram_bytes)
        # Late: saves 34 ms (the machine) where the lab runs it.
        from pyvmm.cli.terminal_run import run_incoming

        listener = MigrationListener(address, protection)
        return run_incoming(listener, max_ram_bytes, hugepages, sockets, ports, record, guest)
