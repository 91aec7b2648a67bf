# SPDX-License-Identifier: Apache-2.0
"""Start: from the start of a VMM's process to the first KVM_RUN of its guest.

A preloaded library (`bench/c/first_run.c`) notes the time and ends the process there. So nothing of
the guest runs, and the time is this machine's own, without a lab, even where its KVM cannot run
Linux. pyvmm is then told not to probe KVM; where KVM is fit, a second contender asks, as
`pyvmm run` does, and finds the verdict of the warm-up in the cache. pyvmm is installed as a user
has it (`bench.installation`). The interpreter alone shows the floor: it starts, and ends at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import product
from pathlib import Path

from bench.installation import installed
from bench.launch import MACHINES, LaunchedGuest, in_memory, run_to_end
from bench.measure import Case, Contender, Plan, Values, seconds, take_turns
from bench.native import shared_library
from bench.peers import BASELINE
from guest_images.build import build_image
from pyvmm.errors import UserError
from pyvmm.machine.kvm_probe import probe_host_kvm
from pyvmm.sockets.lab_paths import IN_LAB_VARIABLE

RAM_MIB = 512
ROUNDS = 21
LIMIT_S = 60
NANOSECONDS_PER_S = 1e9
CPU = "qemu64"
"""QEMU's default: an unfit KVM refuses registers of the host's own processor."""
WITHOUT_PROBE = {IN_LAB_VARIABLE: "1"}
"""The environment of a process that need not ask whether KVM is fit."""
AS_INSTALLED = {"PYTHONPATH": ""}
"""A checkout's packages are not on the path."""


def measure(plan: Plan) -> list[Case]:
    """Start the contenders in turns."""
    case = Case(f"1 vCPU, {RAM_MIB} MiB", "s", against="QEMU pc")
    library = shared_library("first_run")
    with in_memory(build_image(progress=plan.progress)) as image, installed() as installation:
        guest = LaunchedGuest(image, RAM_MIB, 1)
        pyvmm = [str(installation.command), *guest.pyvmm_arguments()]
        contenders: dict[str, Contender] = {"pyvmm": partial(_start, pyvmm, library, WITHOUT_PROBE)}
        if probe_host_kvm().fit:
            contenders["pyvmm, with a KVM known to be fit"] = partial(_start, pyvmm, library, {})
        for machine in MACHINES:
            contenders[machine] = partial(_start, guest.qemu(machine, cpu=CPU), library, {})
        for peer, machine in product(plan.peers, MACHINES):
            argv = guest.qemu(machine, peer=peer, cpu=CPU)
            contenders[machine.replace(BASELINE, peer.name)] = partial(_start, argv, library, {})
        contenders["python -c pass"] = partial(_interpreter, installation.python)
        rounds = plan.rounds(ROUNDS)
        take_turns(case, contenders, rounds, plan, warm_up=True, limit_s=LIMIT_S)
    return [case]


def _start(argv: list[str], library: Path, environment: Mapping[str, str]) -> Values:
    ended = run_to_end(argv, {"LD_PRELOAD": str(library), **AS_INSTALLED, **environment})
    if not ended.times:
        raise UserError(f"{argv!r} has not entered its guest: {ended.message}")
    return seconds(int(ended.times) / NANOSECONDS_PER_S - ended.begin_s)


def _interpreter(python: Path) -> Values:
    ended = run_to_end([str(python), "-c", "pass"], AS_INSTALLED)
    assert ended.status == 0, ended.message
    return seconds(ended.end_s - ended.begin_s)
