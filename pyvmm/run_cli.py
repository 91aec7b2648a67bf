# SPDX-License-Identifier: Apache-2.0
"""`pyvmm run`: one guest, its console on this terminal, ended by the guest or by the person.

The options become a `MachineConfig`, checked here; then either this process runs the machine or,
where KVM is missing or unfit, the very same command line is run again in the lab.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from pyvmm.balloon_features import OPTIONS
from pyvmm.config import DEFAULT_RAM_BYTES, DIALECTS, MIB, MachineConfig, config_for_image
from pyvmm.errors import UserError
from pyvmm.lab.choose import KVM_MODES, Choice, KvmMode, choose_kvm
from pyvmm.quick_start import asyncio
from pyvmm.units import parse_size

if TYPE_CHECKING:
    from pyvmm.machine import Machine
    from pyvmm.snapshot.reader import SnapshotFile

LAB_OVERHEAD_MIB = 2048
"""What the lab's own system, Python and pyvmm need beside guest RAM, with room to spare."""

BESIDE_RESTORE = ("restore", "addresses", "kvm", "verbose", "help")
"""What can be said of a guest that comes from a snapshot."""

END_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


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
    help="Guest RAM, such as 512M or 8G.",
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
    """
    from pyvmm.boot.loader import read_boot_files
    from pyvmm.control.unix_socket import parse_address

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
    sockets = [parse_address(address) for address in addresses]
    if snapshot is None:
        read_boot_files(config)  # what cannot be booted is said before anything is started for it
    if choose_kvm(kvm) is Choice.LAB:
        return _run_in_lab(config, sockets)
    level = logging.DEBUG if verbose else logging.WARNING
    logging.basicConfig(level=level, format="pyvmm: %(message)s")
    return asyncio.run(run_machine(config, sockets, snapshot))


def _open(restore: Path) -> SnapshotFile:
    """The snapshot to go on from; whatever else describes a guest must not be there."""
    from pyvmm.snapshot.reader import SnapshotFile
    from pyvmm.state.parts import KINDS

    context = click.get_current_context()
    for parameter in context.command.get_params(context):
        name = parameter.name or ""
        given = context.get_parameter_source(name) is not ParameterSource.DEFAULT
        if given and name not in BESIDE_RESTORE:
            option = parameter.param_type_name == "option"
            shown = parameter.opts[0] if option else parameter.human_readable_name
            raise UserError(
                f"--restore and {shown} are both given",
                "the snapshot says what guest it is; leave the other away",
            )
    return SnapshotFile(restore, KINDS)


def _one_of(image: Path | None, kernel: Path | None) -> Path:
    """IMAGE and --kernel name the same thing; exactly one of them must be there."""
    given = [path for path in (image, kernel) if path is not None]
    if len(given) != 1:
        message = "both IMAGE and --kernel are given" if given else "there is no kernel to boot"
        raise UserError(message, "give either IMAGE or --kernel FILE")
    return given[0]


def _run_in_lab(config: MachineConfig, sockets: Sequence[Path]) -> int:
    """Run our own command line again, in the lab."""
    from pyvmm.lab.run import MIN_MEMORY_MIB, run_in_lab

    memory_mib = max(MIN_MEMORY_MIB, config.ram_bytes // MIB + LAB_OVERHEAD_MIB)
    return run_in_lab(
        [sys.executable, "-m", "pyvmm", *sys.argv[1:]], memory_mib=memory_mib, sockets=sockets
    )


async def _listen(stack: AsyncExitStack, machine: Machine, path: Path) -> None:
    """Serve control commands at `path` until `stack` is left."""
    from pyvmm.control.server import ControlServer  # most guests have no control socket
    from pyvmm.lab.places import listening_path

    server = ControlServer(machine, listening_path(path))
    await server.start()
    stack.push_async_callback(server.close)


def _restore(snapshot: SnapshotFile, machine: Machine) -> None:
    """Make `machine` what was saved, with a progress bar."""
    from pyvmm.progress import show_progress
    from pyvmm.snapshot.restore import restore

    with show_progress() as progress, snapshot:
        progress.stage(f"restoring {snapshot.path}", snapshot.header.pages)
        restore(snapshot, machine, progress.advance)


async def run_machine(
    config: MachineConfig, sockets: Sequence[Path], snapshot: SnapshotFile | None = None
) -> int:
    """Run one machine on this terminal to its end and return the exit status."""
    from pyvmm.console import Action, ConsoleIo, Terminal
    from pyvmm.machine import Machine
    from pyvmm.outcome import Ending, Outcome
    from pyvmm.tracing import LogTracer

    loop = asyncio.get_running_loop()
    caught: list[int] = []

    def act(action: Action) -> None:
        machine.end(Outcome(Ending.ESCAPE if action is Action.QUIT else Ending.SIGNAL))

    def end_by_signal(signum: int) -> None:
        caught.append(signum)
        machine.end(Outcome(Ending.SIGNAL))

    async with AsyncExitStack() as stack:
        console = ConsoleIo(loop, 0, 1, lambda data: machine.console_input(data), act)
        stack.callback(console.close)
        machine = Machine(
            config,
            console_output=console.queue,
            console_throttle=console.throttle,
            on_console_room=console.room,
            tracer=LogTracer(),
            boot=snapshot is None,
        )
        stack.callback(machine.close)
        if snapshot is not None:
            _restore(snapshot, machine)
        for path in sockets:
            await _listen(stack, machine, path)
        for signum in END_SIGNALS:
            loop.add_signal_handler(signum, end_by_signal, signum)
        stack.enter_context(Terminal(0))
        outcome = await machine.run()
    if outcome.exit_status:
        print(f"pyvmm: {outcome.detail}", file=sys.stderr)
    return 128 + caught[0] if caught else outcome.exit_status
