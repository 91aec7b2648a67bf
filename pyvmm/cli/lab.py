# SPDX-License-Identifier: Apache-2.0
"""`pyvmm lab -- COMMAND…`: run a command where there is a KVM that works."""

from __future__ import annotations

import click

from pyvmm.lab.choose import KVM_MODES, Choice, KvmMode, choose_kvm
from pyvmm.lab.run import DEFAULT_CPUS, MIN_MEMORY_MIB, run_here, run_in_lab


@click.command()
@click.option(
    "--memory",
    type=click.IntRange(1024),
    default=MIN_MEMORY_MIB,
    show_default=True,
    help="RAM of the lab in MiB, when it is needed.",
)
@click.option(
    "--cpus",
    type=click.IntRange(1, 64),
    default=DEFAULT_CPUS,
    show_default=True,
    help="Processors of the lab, when it is needed; QEMU before 8.1 is not safe with several.",
)
@click.option(
    "--kvm",
    type=click.Choice(KVM_MODES),
    default="auto",
    show_default=True,
    help="Where to run.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="End COMMAND after that many seconds, with status 124.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def lab(
    memory: int, cpus: int, kvm: KvmMode, timeout_s: float | None, command: tuple[str, ...]
) -> int:
    """Run COMMAND where KVM works: here when this machine's KVM is fit, else in the lab."""
    if choose_kvm(kvm) is Choice.HOST:
        return run_here(command, timeout_s=timeout_s)
    return run_in_lab(command, memory_mib=memory, cpus=cpus, timeout_s=timeout_s)
