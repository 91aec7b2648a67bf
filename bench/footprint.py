# SPDX-License-Identifier: Apache-2.0
"""Footprint: memory of a VMM without guest RAM, and the time of its imports.

An idle guest is launched from a command line (`bench.launch`); once its shell waits for input,
/proc/PID/smaps gives the resident memory of the process, the same way for each VMM: its heap, the
writable and read-only pages of its program and libraries, its stacks, and the pages of other files
that it has mapped, of which QEMU has one, the kernel's image. Guest RAM is excluded: it is the
mapping that is at least as large as the guest's memory, all others are far smaller. Memory of the
host's kernel, for page tables and for KVM, is in none of the figures.

RSS counts every page that the process has in memory; PSS counts a page shared by n processes as the
n-th part of one, which is fair to libraries but depends on the other processes. In the lab the VMM
runs alone and both are equal, so the plot has only PSS. After a warm-up the files are in the page
cache, of which a process maps 16 pages where it touches one.

Imports are timed from outside, so that they include the interpreter's start.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

from bench.launch import MACHINES, MEMORY, LaunchedGuest, LaunchedProcess, in_memory
from bench.measure import (
    ENOUGH_ROUNDS,
    TOTAL,
    Case,
    Contender,
    Plan,
    Values,
    seconds,
    take_turns,
)
from bench.peers import BASELINE
from guest_images.build import build_image
from pyvmm.units import MIB

RAM_MIB = 1024
PROMPT = "guest# "
ROUNDS = ENOUGH_ROUNDS
IMPORT_ROUNDS = 7
LIMIT_S = 180
"""For either case; in a slow lab there are fewer rounds."""

PROGRAMS = {
    "python -c pass": "pass",
    "import pyvmm.machine": "import pyvmm.machine.machine",
    "imports before the first KVM_RUN": "import pyvmm.cli.entry, pyvmm.cli.guest_run,"
    " pyvmm.cli.boot_run",
    "all imports of pyvmm run": "import pyvmm.cli.entry, pyvmm.cli.guest_run, pyvmm.cli.boot_run,"
    " pyvmm.cli.terminal_run",
}

_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ")
_FIGURE = re.compile(r"^(Rss|Pss): +(\d+) kB")


def measure(plan: Plan) -> list[Case]:
    """Measure two cases of memory, in MiB, and one of imports, in seconds."""
    pss = Case("PSS without guest RAM", "MiB", against="QEMU pc")
    rss = Case("RSS without guest RAM", "MiB", against="QEMU pc", plotted=False)
    with in_memory(build_image(progress=plan.progress)) as image:
        guest = LaunchedGuest(image, RAM_MIB, 1)
        commands = {"pyvmm": guest.pyvmm("-m", "pyvmm")}
        commands.update({machine: guest.qemu(machine) for machine in MACHINES})
        for peer, machine in product(plan.peers, MACHINES):
            commands[machine.replace(BASELINE, peer.name)] = guest.qemu(machine, peer=peer)
        contenders: dict[str, Contender] = {
            name: partial(_resident, argv, rss, name) for name, argv in commands.items()
        }
        if not plan.quick:
            for argv in commands.values():
                _idle_guest(argv)
        rounds = plan.rounds(ROUNDS)
        take_turns(pss, contenders, rounds, plan, warm_up=False, limit_s=LIMIT_S)
    imports = Case("start of Python with imports", "s", against="python -c pass")
    programs: dict[str, Contender] = {
        name: partial(_import, program) for name, program in PROGRAMS.items()
    }
    warm_up, rounds = not plan.quick, plan.rounds(IMPORT_ROUNDS)
    take_turns(imports, programs, rounds, plan, warm_up=warm_up, limit_s=LIMIT_S)
    return [pss, rss, imports]


def _resident(argv: list[str], rss: Case, name: str) -> Values:
    """Return the PSS of a VMM with an idle guest, and add its RSS to the other case."""
    resident = _idle_guest(argv)
    rss.add(name, {TOTAL: resident["Rss"] / MIB})
    return {TOTAL: resident["Pss"] / MIB}


def _idle_guest(argv: list[str]) -> dict[str, int]:
    """Launch a VMM and return its resident memory beside guest RAM, once its guest is idle."""
    with LaunchedProcess(argv) as process:
        process.wait_for(PROMPT)
        return resident_beside_ram(Path(f"/proc/{process.pid}/smaps").read_text(), RAM_MIB * MIB)


def resident_beside_ram(smaps: str, ram_bytes: int) -> dict[str, int]:
    """Return the sums of Rss and Pss, in bytes, of all mappings but that of guest RAM."""
    resident = {"Rss": 0, "Pss": 0}
    guest_ram = 0
    for mapped, figures in mappings(smaps):
        if mapped >= ram_bytes:
            guest_ram += figures["Rss"]
            continue
        for figure in resident:
            resident[figure] += figures[figure]
    assert guest_ram > 16 << 20, "the mapping taken for guest RAM holds no guest"
    return resident


def mappings(smaps: str) -> Iterator[tuple[int, dict[str, int]]]:
    """Yield the size of each mapping, and its Rss and Pss, all in bytes (proc(5), smaps)."""
    mapped, figures = 0, dict[str, int]()
    for line in smaps.splitlines():
        if match := _MAPPING.match(line):
            if figures:
                yield mapped, figures
            mapped, figures = int(match[2], 16) - int(match[1], 16), {}
        elif match := _FIGURE.match(line):
            figures[match[1]] = int(match[2]) << 10
    if figures:
        yield mapped, figures


def _import(program: str) -> Values:
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True, cwd=MEMORY)
    return seconds(time.monotonic() - begin)
