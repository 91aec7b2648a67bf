# SPDX-License-Identifier: Apache-2.0
"""Footprint: what a VMM needs beside guest RAM, and how long Python takes to import it.

An idle guest is booted as a person starts one (`bench.started`); once its shell waits for input,
/proc/PID/smaps says what the process has resident. Guest RAM is left out: it is the mapping that is
at least as large as the guest's memory, all others are far smaller. RSS counts every page that the
process has in memory; PSS counts a page that n processes share as the n-th part of one, which is
fair to libraries but depends on who else runs.

Imports are timed from outside as well, because a user pays for the interpreter's start, too.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench.measure import TOTAL, Case, Contender, Plan, Values, seconds, take_turns
from bench.started import MACHINES, MEMORY, Guest, Started, in_memory
from guest_images.build import build_image

RAM_MIB = 1024
PROMPT = "guest# "
ROUNDS = 3
IMPORT_ROUNDS = 7
WITHIN_S = 60
"""For either; in a slow lab there are fewer rounds."""

PROGRAMS = {
    "python -c pass": "pass",
    "import pyvmm.machine": "import pyvmm.machine.machine",
    "all that pyvmm run imports": "import pyvmm.cli.main, pyvmm.cli.run, pyvmm.machine.machine",
}

_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ")
_FIGURE = re.compile(r"^(Rss|Pss): +(\d+) kB")


def measure(plan: Plan) -> list[Case]:
    """Two cases of memory, in MiB, and one of imports, in seconds."""
    pss = Case("PSS beside 1 GiB of guest RAM", "MiB", against="QEMU pc")
    rss = Case("RSS beside 1 GiB of guest RAM", "MiB", against="QEMU pc")
    with in_memory(build_image(progress=plan.progress)) as image:
        guest = Guest(image, RAM_MIB, 1)
        commands = {"pyvmm": guest.pyvmm("-m", "pyvmm")}
        commands.update({machine: guest.qemu(machine) for machine in MACHINES})
        contenders: dict[str, Contender] = {
            name: partial(_resident, argv, rss, name) for name, argv in commands.items()
        }
        rounds = plan.rounds(ROUNDS)
        take_turns(pss, contenders, rounds, plan, rehearse=False, within_s=WITHIN_S)
    imports = Case("import", "s", against="python -c pass")
    programs: dict[str, Contender] = {
        name: partial(_import, program) for name, program in PROGRAMS.items()
    }
    rehearse, rounds = not plan.quick, plan.rounds(IMPORT_ROUNDS)
    take_turns(imports, programs, rounds, plan, rehearse=rehearse, within_s=WITHIN_S)
    return [pss, rss, imports]


def _resident(argv: list[str], rss: Case, name: str) -> Values:
    """PSS of a VMM whose guest idles; its RSS is noted in the other case."""
    with Started(argv) as started:
        started.wait_for(PROMPT)
        beside = {"Rss": 0, "Pss": 0}
        guest_ram = 0
        for mapped, figures in mappings(Path(f"/proc/{started.pid}/smaps").read_text()):
            if mapped >= RAM_MIB << 20:
                guest_ram += figures["Rss"]
                continue
            for figure in beside:
                beside[figure] += figures[figure]
        assert guest_ram > 16 << 20, "the mapping that was taken for guest RAM holds no guest"
    rss.add(name, {TOTAL: beside["Rss"] / (1 << 20)})
    return {TOTAL: beside["Pss"] / (1 << 20)}


def mappings(smaps: str) -> Iterator[tuple[int, dict[str, int]]]:
    """Size of each mapping, and its Rss and Pss, all in bytes (proc(5), smaps)."""
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
