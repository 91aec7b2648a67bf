# SPDX-License-Identifier: Apache-2.0
"""A command in a guest of its own: `pyvmm run guest.img -- true`, from start to exit status.

It is compared with a boot of the same guest to its first line of user space, so the ratio is what
the agent, the command, and the ends of guest and process add. As in `bench.boot`, the interpreter
runs a program that wraps functions of pyvmm to take the time, and then becomes `pyvmm run`.

    start     interpreter, imports, options; the agent's archive and the image are read
    machine   probe of KVM, further imports, the VM with everything in its RAM, its first vCPU
    guest     from the first instruction until the agent answers; the event loop is imported
    command   from the request to start the command until its end is reported
    end       the guest and the process end
"""

from __future__ import annotations

import json
from functools import partial

from bench.boot import USER_SPACE
from bench.launch import TIMES_FD, LaunchedGuest, LaunchedProcess, in_memory, run_to_end
from bench.measure import TOTAL, Case, Contender, Plan, Values, seconds, take_turns
from guest_images.build import build_image
from pyvmm.errors import UserError

STAGES = ("start", "machine", "guest", "command")
ROUNDS = 7
LIMIT_S = 150
RAM_MIB = 512

STAMPED = f"""
import json, os, sys, time
from pyvmm.cli import entry, guest_run
stamps, fd = {{}}, int(os.environ["{TIMES_FD}"])
def stamp(name):
    stamps[name] = time.monotonic()
run_where_kvm_works = guest_run.run_where_kvm_works
def chosen(*args, **kwargs):
    stamp("start")
    from pyvmm.cli import vm_start
    boot = vm_start.VmStart.boot
    def booted(*args):
        boot(*args)
        stamp("machine")
        time_command()
    vm_start.VmStart.boot = booted
    return run_where_kvm_works(*args, **kwargs)
def time_command():
    from pyvmm.cli import command_run
    def after(owner, name, stage):
        function = getattr(owner, name)
        async def wrapped(*args):
            result = await function(*args)
            stamp(stage)
            return result
        setattr(owner, name, wrapped)
    after(command_run.GuestAgent, "connect", "guest")
    after(command_run.GuestCommand, "wait", "command")
guest_run.run_where_kvm_works = chosen
try:
    entry.main()
finally:
    os.write(fd, json.dumps(stamps).encode())
"""


def measure(plan: Plan) -> list[Case]:
    """Run the command and boot the guest in turns."""
    case = Case(f"1 vCPU, {RAM_MIB} MiB", "s", against="boot to user space")
    with in_memory(build_image(progress=plan.progress)) as image:
        guest = LaunchedGuest(image, RAM_MIB, 1)
        contenders: dict[str, Contender] = {
            "run -- true": partial(_run_command, guest),
            "boot to user space": partial(_boot, guest),
        }
        rounds = plan.rounds(ROUNDS)
        take_turns(case, contenders, rounds, plan, warm_up=not plan.quick, limit_s=LIMIT_S)
    return [case]


def _boot(guest: LaunchedGuest) -> Values:
    with LaunchedProcess(guest.pyvmm("-m", "pyvmm")) as process:
        return seconds(process.wait_for(USER_SPACE))


def _run_command(guest: LaunchedGuest) -> Values:
    ended = run_to_end([*guest.pyvmm("-c", STAMPED), "--", "true"])
    if ended.status:
        raise UserError(f"the command has failed: {ended.message}")
    taken, before = json.loads(ended.times), ended.begin_s
    values = {TOTAL: ended.end_s - before}
    for stage in STAGES:
        values[stage] = taken[stage] - before
        before = taken[stage]
    return {**values, "end": ended.end_s - before}
