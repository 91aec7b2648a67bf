# SPDX-License-Identifier: Apache-2.0
"""`pyvmm lab -- COMMAND…`: run a command where KVM works.

The commands that run a guest themselves, run and demo, use `run_guest_in_lab`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyvmm.cli.options import kvm_option, parse_positive_seconds
from pyvmm.lab.choose import KVM_MODES, KvmMode, KvmProvider, choose_kvm
from pyvmm.lab.run import DEFAULT_CPUS, MIN_MEMORY_MIB, run_here, run_in_lab

if TYPE_CHECKING:
    from pyvmm.sockets.addresses import Address
    from pyvmm.sockets.tls import Security

OVERHEAD_MIB = 2048
"""Memory that the lab needs in addition to guest RAM for its system, Python and pyvmm; ample."""


@click.command()
@click.option(
    "--memory",
    type=click.IntRange(1024),
    default=MIN_MEMORY_MIB,
    show_default=True,
    help="RAM of the lab in MiB, if the lab is used.",
)
@click.option(
    "--cpus",
    type=click.IntRange(1, 64),
    default=DEFAULT_CPUS,
    show_default=True,
    help="Processors of the lab, if it is used; QEMU before 8.1 is not safe with several.",
)
@kvm_option(KVM_MODES)
@click.option(
    "--timeout",
    "timeout_s",
    type=parse_positive_seconds,
    metavar="S",
    help="End COMMAND after this many seconds, with status 124.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def lab(
    memory: int, cpus: int, kvm: KvmMode, timeout_s: float | None, command: tuple[str, ...]
) -> int:
    """Run COMMAND where KVM works: on this machine if its KVM is fit, else in the lab."""
    if choose_kvm(kvm) is KvmProvider.HOST:
        return run_here(command, timeout_s=timeout_s)
    return run_in_lab(command, memory_mib=memory, cpus=cpus, timeout_s=timeout_s)


def run_guest_in_lab(
    argv: Sequence[str],
    ram_mib: int,
    *,
    sockets: Sequence[Path] = (),
    incoming: Address | None = None,
    security: Security | None = None,
) -> int:
    """Run `argv`, which runs a guest of at most `ram_mib`, in a lab that is large enough for it.

    The other arguments and the errors are those of `run_in_lab`; returns the exit status.
    """
    return run_in_lab(
        argv,
        memory_mib=max(MIN_MEMORY_MIB, ram_mib + OVERHEAD_MIB),
        sockets=sockets,
        incoming=incoming,
        security=security,
    )
