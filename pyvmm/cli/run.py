# SPDX-License-Identifier: Apache-2.0
"""`pyvmm run`: run one guest with its console on this terminal.

The options select a configuration to boot, a snapshot to restore or an address to wait at for a
migration; errors in them are reported before anything is started. `guest_run` then runs the guest.
A command line with an IMAGE and nothing but `boot_options` does not come here: it is run without
click (`pyvmm.cli.entry`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyvmm.cli.boot_options import ONLY_BOOT
from pyvmm.cli.command_options import (
    COMMAND_KEY,
    ONLY_WITH_COMMAND,
    RunCommand,
    command_options,
)
from pyvmm.cli.errors import CommandError
from pyvmm.cli.guest_run import (
    boot_image,
    run_guest,
    run_incoming_guest,
    socket_paths,
)
from pyvmm.cli.options import (
    SECURITY_PARAMETERS,
    boot_option,
    given_parameters,
    security,
    security_options,
)
from pyvmm.cli.record_options import RECORD_PARAMETERS, record_options, recording_of
from pyvmm.standard_streams.log import set_up_log

if TYPE_CHECKING:
    from pyvmm.cli.console.ports import PortOption
    from pyvmm.config import HugePages
    from pyvmm.lab.choose import KvmMode
    from pyvmm.snapshot.reader import SnapshotFile

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
@boot_option("--memory")
@boot_option("--hugepages")
@boot_option("--cpus")
@boot_option("--initrd")
@boot_option("--append")
@command_options
@boot_option("--dialect")
@boot_option("--offer")
@boot_option("--withhold")
@boot_option("--rng")
@boot_option("--rng-limit")
@boot_option("--console")
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
@boot_option("--name")
@boot_option("--qmp")
@record_options
@boot_option("--kvm")
@boot_option("--verbose")
def run(
    image: Path | None,
    kernel: Path | None,
    ram_bytes: int,
    hugepages: HugePages,
    initrd: Path | None,
    append: str,
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
    set_up_log(verbose)
    command = click.get_current_context().meta.get(COMMAND_KEY, ())
    sockets = socket_paths(addresses)
    ports = _ports(port_values) if port_values else []
    record = recording_of(guest_options)
    if not command or incoming is not None or restore is not None:
        _refuse_command(command)
    if incoming is not None:
        _refuse_configuration("incoming", "ram_bytes", *SECURITY_PARAMETERS)
        protection = security(tls_ca, tls_cert, tls_key, insecure)
        return run_incoming_guest(
            incoming, protection, ram_bytes, hugepages, guest_name, sockets, ports, record, kvm
        )
    for shown in given_parameters(SECURITY_PARAMETERS):
        raise CommandError(f"{shown} applies only to an incoming guest", "add --incoming ADDRESS")
    if restore is not None:
        snapshot = _open(restore)
        config = snapshot.config.changed(hugepages=hugepages)
        return run_guest(config, snapshot, guest_name, sockets, ports, record, kvm)
    boot_path = _one_of(image, kernel)
    additions = None
    if command or kernel is not None or guest_options["put_values"]:
        # Late: saves 9 ms for a guest.img with its console on this terminal.
        from pyvmm.cli.command_request import read_additions

        additions = read_additions(boot_path, initrd, ram_bytes, command, guest_options)
        append = f"{additions.append} {append}".strip()
    return boot_image(
        boot_path,
        ram_bytes=ram_bytes,
        hugepages=hugepages,
        initrd=initrd,
        append=append,
        guest_name=guest_name,
        sockets=sockets,
        kvm=kvm,
        ports=ports,
        record=record,
        additions=additions,
        **{name: guest_options[name] for name in ONLY_BOOT},
    )


def _ports(values: Sequence[str]) -> list[PortOption]:
    """Return the ports of --port. Raises `UserError`."""
    # Late: saves 11 modules without --port.
    from pyvmm.cli.console.ports import parse_ports

    return parse_ports(values)


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
