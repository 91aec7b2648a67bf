# SPDX-License-Identifier: Apache-2.0
"""Boot: from the start of the process to the guest's first line of user space.

Every contender is a process of its own (see `bench.launch`) that boots the same kernel; the time
is taken outside of it, when the line that the guest's /init writes arrives. pyvmm's interpreter
runs `STAMPED`: it imports the modules of `pyvmm run`, takes the time, and then becomes `pyvmm run`,
with two functions wrapped to take the time when the machine is about to be created and when a vCPU
first enters the guest. So the product contains no code for measuring.

    interpreter   exec, the interpreter itself and its `site`
    imports       our modules and those they import, up to the machine
    machine       options, kernel and tables into guest RAM, KVM, devices; ends at the first KVM_RUN
    guest         the kernel until its /init writes the line; pyvmm serves its exits, and imports
                  its event loop meanwhile
"""

from __future__ import annotations

import json
import os
from functools import partial

from bench.launch import MACHINES, LaunchedGuest, LaunchedProcess, in_memory
from bench.measure import TOTAL, Case, Contender, Plan, Values, seconds, take_turns
from bench.peers import BASELINE
from guest_images.build import build_image

USER_SPACE = "pyvmm guest: user space up after"
LIMIT_S = 75
"""For each case; in a slow lab there are fewer rounds."""
# Name, vCPUs, MiB of RAM, rounds.
CASES = (("1 vCPU, 512 MiB", 1, 512, 7), ("4 vCPUs, 1 GiB", 4, 1024, 3))

STAMPED = """
import time
stamps = {"interpreter": time.monotonic()}
import sys
from pyvmm.cli import boot_run, entry, guest_run
from pyvmm.machine import vcpu_thread
def noting(name, function):
    def wrapped(*args, **kwargs):
        now = time.monotonic()
        # Only the first of several vCPU threads counts.
        if stamps.setdefault(name, now) is now and name == "machine":
            import json, os
            os.write(int(fd), json.dumps(stamps).encode())
            os.close(int(fd))
        return function(*args, **kwargs)
    return wrapped
vcpu_thread.kvm_run.run = noting("machine", vcpu_thread.kvm_run.run)
guest_run.config_for_image = noting("imports", guest_run.config_for_image)
fd = sys.argv.pop(1)
entry.main()
"""


def measure(plan: Plan) -> list[Case]:
    """Boot the contenders in turns."""
    cases = []
    with in_memory(build_image(progress=plan.progress)) as image:
        for name, vcpus, ram_mib, full in CASES[: 1 if plan.quick else None]:
            guest = LaunchedGuest(image, ram_mib, vcpus)
            contenders: dict[str, Contender] = {"pyvmm": partial(_boot_pyvmm, guest)}
            for machine in MACHINES:
                contenders[machine] = partial(_boot_qemu, guest.qemu(machine))
                for peer in plan.peers:
                    name_there = machine.replace(BASELINE, peer.name)
                    contenders[name_there] = partial(_boot_qemu, guest.qemu(machine, peer=peer))
            case = Case(name, "s", against="QEMU pc")
            rounds = plan.rounds(full)
            warm_up = not plan.quick
            take_turns(case, contenders, rounds, plan, warm_up=warm_up, limit_s=LIMIT_S)
            cases.append(case)
    return cases


def _boot_qemu(argv: list[str]) -> Values:
    with LaunchedProcess(argv) as process:
        return seconds(process.wait_for(USER_SPACE))


def _boot_pyvmm(guest: LaunchedGuest) -> Values:
    reader, writer = os.pipe()
    argv = guest.pyvmm("-c", STAMPED, str(writer))
    with open(reader, "rb") as stamps, LaunchedProcess(argv, (writer,)) as process:
        os.close(writer)
        total = process.wait_for(USER_SPACE)
        taken = json.load(stamps)
    values = {TOTAL: total}
    before = process.begin
    for stage in ("interpreter", "imports", "machine"):
        values[stage] = taken[stage] - before
        before = taken[stage]
    return {**values, "guest": process.begin + total - before}
