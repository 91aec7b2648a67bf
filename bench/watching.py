# SPDX-License-Identifier: Apache-2.0
"""Cost of events, without a guest: bench "watching".

`bench.watched_work` does one exit or one inflate, over and over, while no one watches its events,
while they are recorded, or while a client reads them. Contenders take turns. The time is processor
time of the process, so it includes the thread that takes the events. Instructions are counted by
callgrind, in a process for each contender: those of many, less those of a few. They are exact where
no one watches, and rise a little with each 500 ms of a recording, which are a few milliseconds of
work in callgrind. `start` is `pyvmm run` up to the machine: the imports, without its options.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from time import process_time

from bench.measure import Case, Contender, Plan, Values, seconds, take_turns
from bench.watched_work import EXIT, INFLATE_3, WATCHERS, TracedBalloon
from bench.watchers import RECORDED, UNWATCHED
from pyvmm.errors import UserError

ROUNDS = 15
REPEATS = {EXIT: 20_000, INFLATE_3: 2_000}
QUICK_REPEATS = 200
COUNTED = (200, 1200)
QUICK_COUNTED = (20, 40)

_IMPORTS = {
    UNWATCHED: "import pyvmm.cli.entry, pyvmm.cli.guest_run, pyvmm.cli.boot_run",
    RECORDED: "import pyvmm.cli.entry, pyvmm.cli.guest_run, pyvmm.cli.boot_run,"
    " pyvmm.trace.recorder, pyvmm.trace.recording_file",
}


def measure(plan: Plan) -> list[Case]:
    """Measure the time of each kind of work, and its instructions if there is callgrind."""
    cases = []
    for kind in (EXIT, INFLATE_3):
        case = Case(f"{kind}, processor time", "us", against=UNWATCHED, panel=f"{kind}, time")
        contenders = {watcher: _timed(kind, watcher, plan) for watcher in WATCHERS}
        take_turns(case, contenders, plan.rounds(ROUNDS), plan, warm_up=True)
        cases.append(case)
    if shutil.which("valgrind") is None:
        return cases
    for kind in (EXIT, INFLATE_3):
        counted = {watcher: partial(_counted, kind, watcher, plan) for watcher in WATCHERS}
        cases.append(_instructions(kind, counted, plan))
    started = {watcher: partial(_started, code) for watcher, code in _IMPORTS.items()}
    return [*cases, _instructions("start", started, plan)]


def _timed(kind: str, watcher: str, plan: Plan) -> Contender:
    balloon = TracedBalloon(watcher)
    work, count = balloon.work(kind), QUICK_REPEATS if plan.quick else REPEATS[kind]

    def contend() -> Values:
        begin = process_time()
        with balloon.watched():
            for _ in range(count):
                work()
        return seconds((process_time() - begin) * 1e6 / count)

    return contend


def _instructions(kind: str, contenders: Mapping[str, Contender], plan: Plan) -> Case:
    case = Case(f"{kind}, instructions", "instructions", UNWATCHED, panel=f"{kind}, instructions")
    return take_turns(case, contenders, 1, plan, warm_up=False)


def _counted(kind: str, watcher: str, plan: Plan) -> Values:
    few, many = QUICK_COUNTED if plan.quick else COUNTED
    work = ("-m", "bench.watched_work", kind, watcher)
    return seconds((_callgrind(*work, str(many)) - _callgrind(*work, str(few))) / (many - few))


def _started(code: str) -> Values:
    return seconds(_callgrind("-c", code))


def _callgrind(*arguments: str) -> int:
    """Return the instructions of an interpreter that runs with `arguments`.

    It runs once before, so that all modules are compiled.
    """
    subprocess.run([sys.executable, *arguments], check=True)
    tool = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
    done = subprocess.run(
        [*tool, sys.executable, *arguments],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    collected = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or collected is None:
        raise UserError(f"callgrind has failed: {done.stderr[-2000:]}")
    return int(collected[1])
