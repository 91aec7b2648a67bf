# SPDX-License-Identifier: Apache-2.0
"""`pyvmm lab -- COMMAND…`: run a command where KVM works.

The commands that run a guest themselves use `run_guest_in_lab` (demo) and `run_again_in_lab` (run).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyvmm.cli.options import boot_option, parse_positive_seconds, parse_size_value
from pyvmm.lab.choose import KvmMode, KvmProvider, choose_kvm
from pyvmm.lab.processors import DEFAULT_CPUS
from pyvmm.lab.run import MIN_MEMORY_MIB, check_shared, run_here, run_in_lab
from pyvmm.units import GIB, MIB

if TYPE_CHECKING:
    from pyvmm.cli.console.ports import PortOption
    from pyvmm.runtime_directory.announcement import ListeningSocket
    from pyvmm.sockets.addresses import Address
    from pyvmm.sockets.tls import Security

OVERHEAD_MIB = 2048
"""Memory that the lab needs in addition to guest RAM for its system, Python and pyvmm; ample."""

OUTPUT_TIMEOUT_S = 10.0
"""Longest pause of the reader of a guest's output when the guest has ended in the lab."""


def parse_memory(text: str) -> int:
    """Convert a size of at least 1 GiB to MiB, rounded up; a click type.

    A smaller number without a unit is in MiB: no lab has so few bytes, and the option once took
    nothing else. Raises click's usage error.
    """
    size_bytes = parse_size_value(text)
    if text.isdecimal() and size_bytes < GIB:
        size_bytes *= MIB
    if size_bytes < GIB:
        raise click.BadParameter(f"{text!r} is too small: a lab has at least 1 GiB")
    return -(-size_bytes // MIB)


@click.command()
@click.option(
    "--memory",
    "memory_mib",
    type=parse_memory,
    default=f"{MIN_MEMORY_MIB // 1024}G",
    show_default=True,
    metavar="SIZE",
    help="RAM of the lab, if it is used: at least 1G.",
)
@click.option(
    "--cpus",
    type=click.IntRange(1, 64),
    default=DEFAULT_CPUS,
    show_default=True,
    metavar="N",
    help="Processors of the lab, if it is used; QEMU before 8.1 is not safe with several.",
)
@boot_option("--kvm")
@click.option(
    "--timeout",
    "timeout_s",
    type=parse_positive_seconds,
    metavar="S",
    help="End COMMAND after this many seconds, with status 124.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def lab(
    memory_mib: int, cpus: int, kvm: KvmMode, timeout_s: float | None, command: tuple[str, ...]
) -> int:
    """Run COMMAND where KVM works: on this machine if its KVM is fit, else in the lab.

    The lab is an emulated machine with a KVM of its own, which sees the files of this one. COMMAND
    has this terminal, directory and environment. Write -- in front of a COMMAND with options.

    \b
    Run a command with KVM, in a lab with 6 GiB:
      pyvmm lab --memory 6G -- python -m pytest tests/kvm/test_guest_boot.py

    The exit status is that of COMMAND, 128 + N when signal N ended it, 124 after --timeout, 125
    when the lab failed.
    """
    if choose_kvm(kvm) is KvmProvider.HOST:
        return run_here(command, timeout_s=timeout_s)
    return run_in_lab(command, memory_mib=memory_mib, cpus=cpus, timeout_s=timeout_s)


def run_guest_in_lab(
    argv: Sequence[str],
    ram_mib: int,
    *,
    files: Sequence[Path] = (),
    sockets: Sequence[Path] = (),
    announced: ListeningSocket | None = None,
    incoming: Address | None = None,
    security: Security | None = None,
) -> int:
    """Run `argv`, which runs a guest of at most `ram_mib`, in a lab that is large enough for it.

    `files` are those that it reads and writes. The other arguments and the errors are those of
    `run_in_lab`; returns the exit status.
    """
    check_shared(*files)
    return run_in_lab(
        argv,
        memory_mib=max(MIN_MEMORY_MIB, ram_mib + OVERHEAD_MIB),
        sockets=sockets,
        announced=announced,
        incoming=incoming,
        security=security,
        output_timeout_s=OUTPUT_TIMEOUT_S,
    )


def run_again_in_lab(
    ram_bytes: int,
    announced: ListeningSocket | None,
    sockets: Sequence[Path],
    ports: Sequence[PortOption],
    host_paths: Sequence[Path] = (),
    incoming: Address | None = None,
    security: Security | None = None,
) -> int:
    """Run this process's command line again in the lab, for a guest of at most `ram_bytes`.

    `host_paths` are files that it uses beside those of click's parameters, if click has parsed it.
    The other arguments and the errors are those of `run_in_lab`; returns the exit status.
    """
    context = click.get_current_context(silent=True)
    parameters = context.params.values() if context is not None else ()
    files = [path for path in parameters if isinstance(path, Path) and path != Path("-")]
    return run_guest_in_lab(
        [sys.executable, "-m", "pyvmm", *sys.argv[1:]],
        ram_bytes // MIB,
        files=[*files, *host_paths, *(port.path for port in ports if not port.is_socket)],
        sockets=[*sockets, *(port.path for port in ports if port.is_socket)],
        announced=announced,
        incoming=incoming,
        security=security,
    )
