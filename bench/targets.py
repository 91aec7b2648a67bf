# SPDX-License-Identifier: Apache-2.0
"""Performance targets: ratios of two medians of one run, and of the scope's page times.

Seconds of different machines are not comparable, but a person who waits for a page sees them.
A target has a limit, which should hold, and a more ambitious goal. Nothing fails when a target is
missed; the tables say so. `HEADLINES` are the few targets that the project's README shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from bench.encoding_cases import BITMAP, BLOCKS, BOOKKEEPING, RAM, STANDARD
from bench.path_cases import CHECKED, SOCKETS, TCP, TOUCHED, UNIX
from bench.path_cases import PYVMM as PATH
from bench.path_cases import case_name as path_case
from bench.request_cases import C_LOOP, LOOP, PYVMM, case_name
from bench.results import Result
from bench.scope_cases import LOADED, SCRIPTS, SMALL, frame_case
from bench.snapshot_path_cases import CHECKED as CHECKED_FILE
from bench.snapshot_path_cases import DISK, FILE, LOAD, LOAD_ON_ACCESS, MEMORY, SAVE
from bench.snapshot_path_cases import PYVMM as FILE_PATH
from bench.snapshot_path_cases import case_name as file_case
from bench.watchers import NO_BUFFER, RECORDED, UNWATCHED, WATCHED

NO_CONTENDER = ""
"""In place of the contender that another is divided by."""


@dataclass(frozen=True)
class PerformanceTarget:
    """One target: the time or size of `contender`, divided by that of `against`.

    Without `against` it is the time itself, and limit and goal are in the unit of the case.
    """

    name: str
    bench: str
    case: str
    contender: str
    against: str
    limit: float
    goal: float

    def is_in(self, result: Result) -> bool:
        """Return whether `result` has the case and its contenders."""
        return any(
            case.name == self.case and self._contenders <= case.rounds.keys()
            for case in result.cases
        )

    @property
    def _contenders(self) -> set[str]:
        return {self.contender, self.against} - {NO_CONTENDER}

    def has_enough_rounds(self, result: Result) -> bool:
        """Return whether it is more than an indication."""
        case = result.case(self.case)
        return all(case.has_enough_rounds(contender) for contender in self._contenders)

    def measured(self, result: Result) -> float:
        """Return the ratio of the medians, or the median; KeyError when it was not measured."""
        case = result.case(self.case)
        if self.against == NO_CONTENDER:
            return case.median(self.contender)
        return case.ratio(self.contender, self.against)

    def spread(self, result: Result) -> tuple[float, float]:
        """Return the least and the greatest value of a round."""
        case = result.case(self.case)
        if self.against == NO_CONTENDER:
            return min(case.rounds[self.contender]), max(case.rounds[self.contender])
        return case.ratio_spread(self.contender, self.against)

    def unit(self, result: Result) -> str:
        """Return the unit of what is measured; a ratio has none."""
        return result.case(self.case).unit if self.against == NO_CONTENDER else ""


LARGE = "-8gib"
"""At the end of the name of a benchmark of guests of 8 GiB."""
_QEMU = "QEMU pc"
_QUERY_DISABLED, _QEMU_HINTS = "pyvmm, bitmap, query disabled", "QEMU pc, hints"
_ONE_RUN_HUGE = "one run, huge pages"
_BEST, _PER_RUN, _PER_PAGE = (
    "C, batched madvise",
    "C, one madvise per run",
    "C, one madvise per page",
)


def _device(
    case: str, against: str, limit: float, goal: float, contender: str = BITMAP
) -> PerformanceTarget:
    name = f"discard, {case}: {contender} / {against}"
    return PerformanceTarget(name, "device", case, contender, against, limit, goal)


def _balloon(case: str, contender: str, limit: float, goal: float) -> PerformanceTarget:
    name = f"{case}: {contender} / {_QEMU}"
    return PerformanceTarget(name, "balloon", case, contender, _QEMU, limit, goal)


def _blocks(what: str, case: str, limit: float, goal: float) -> PerformanceTarget:
    name = f"{what}: blocks of 2 MiB / single pages"
    return PerformanceTarget(name, "encodings", case, BITMAP + BLOCKS, BITMAP, limit, goal)


def _skipping_unused(bench: str, case: str, limit: float, goal: float) -> PerformanceTarget:
    everything = "saving all" if bench.startswith("snapshot") else "sending all"
    name = f"{case}{_size(bench)}: skipping unused pages / {everything}"
    return PerformanceTarget(name, bench, case, BITMAP, _QUERY_DISABLED, limit, goal)


def _beside_hints(bench: str, case: str, limit: float, goal: float) -> PerformanceTarget:
    name = f"{case}{_size(bench)}: skipping unused pages / QEMU pc with free page hints"
    return PerformanceTarget(name, bench, case, BITMAP, _QEMU_HINTS, limit, goal)


def _sending_all(bench: str, limit: float, goal: float) -> PerformanceTarget:
    case = "migration time, idle guest"
    name = f"{case}{_size(bench)}: sending all / {_QEMU} without free page hints"
    return PerformanceTarget(name, bench, case, _QUERY_DISABLED, _QEMU, limit, goal)


def _size(bench: str) -> str:
    """Return the guest's size for the name of a target."""
    return ", 8 GiB" if bench.endswith(LARGE) else ", 1 GiB"


def _start(machine: str, limit: float, goal: float) -> PerformanceTarget:
    return PerformanceTarget(
        f"start to first KVM_RUN: pyvmm / {machine}",
        "start",
        "1 vCPU, 512 MiB",
        "pyvmm",
        machine,
        limit,
        goal,
    )


def _boot(machine: str, limit: float, goal: float) -> PerformanceTarget:
    case = "1 vCPU, 512 MiB"
    return PerformanceTarget(
        f"boot, {case}: pyvmm / {machine}", "boot", case, "pyvmm", machine, limit, goal
    )


def _unwatched(kind: str) -> PerformanceTarget:
    name, case = f"instructions, {kind}: not watched / without events", f"{kind}, instructions"
    return PerformanceTarget(name, "watching", case, UNWATCHED, NO_BUFFER, 1.01, 1.005)


def _requests(what: str, buffers: int, limit: float, goal: float) -> PerformanceTarget:
    case = case_name(buffers, LOOP, 50)
    name = f"{what}, from notification to used element: {PYVMM} / {C_LOOP}"
    return PerformanceTarget(name, "requests", case, PYVMM, C_LOOP, limit, goal)


def _path(link: str, against: str, limit: float, goal: float) -> PerformanceTarget:
    case = path_case(link, TOUCHED)
    name = f"migration path, {case}: {PATH} / {against}"
    return PerformanceTarget(name, "migration-path", case, PATH, against, limit, goal)


def _file(work: str, place: str, against: str, limit: float, goal: float) -> PerformanceTarget:
    case = file_case(work, place)
    name = f"snapshot path, {case}: {FILE_PATH} / {against}"
    return PerformanceTarget(name, "snapshot-path", case, FILE_PATH, against, limit, goal)


def _watched(watcher: str, limit: float, goal: float) -> PerformanceTarget:
    case = "boot, 512 MiB"
    name = f"{case}: {watcher} / {UNWATCHED}"
    return PerformanceTarget(name, "watching-guest", case, watcher, UNWATCHED, limit, goal)


def _page(case: str, limit: float, goal: float) -> PerformanceTarget:
    name = f"scope, {case}, {SMALL}"
    return PerformanceTarget(name, "scope", case, SMALL, NO_CONTENDER, limit, goal)


TARGETS: tuple[PerformanceTarget, ...] = (
    _device("one run, 4 KiB pages", _BEST, 1.05, 1.02),
    _device(_ONE_RUN_HUGE, _BEST, 1.08, 1.03),
    _device("runs of 2 MiB, 4 KiB pages", _BEST, 1.05, 1.02),
    _device("runs of 2 MiB, huge pages", _BEST, 1.05, 1.02),
    _device("one run of blocks, huge pages", _BEST, 1.05, 1.02, BITMAP + BLOCKS),
    _device("every second block, huge pages", _BEST, 1.05, 1.02, BITMAP + BLOCKS),
    _device("every second page, 4 KiB pages", _BEST, 1.15, 1.05),
    _device("every second page, huge pages", _BEST, 1.15, 1.05),
    _device(_ONE_RUN_HUGE, _PER_PAGE, 0.02, 0.01),
    _device("every second page, 4 KiB pages", _PER_RUN, 0.40, 0.33),
    PerformanceTarget(
        "register access that needs Python: event loop busy / idle",
        "exit-delay",
        "port read beside an event loop",
        "event loop busy, pyvmm's switch interval",
        "event loop idle",
        3.0,
        1.5,
    ),
    _requests("one request", 1, 4.0, 2.0),
    _requests("64 requests at once", 64, 2.0, 1.3),
    *(
        target
        for ram in ("untouched", "touched")
        for target in (
            _balloon(f"inflate, RAM {ram}, 1 vCPU", BITMAP, 0.15, 0.05),
            _balloon(f"deflate, RAM {ram}, 1 vCPU", BITMAP, 0.20, 0.08),
            _balloon(f"inflate, RAM {ram}, 1 vCPU", STANDARD, 1.0, 0.7),
        )
    ),
    *(
        target
        for ram in RAM
        for case in (f"inflate, RAM {ram}",)
        for target in (
            _blocks(f"{case}, bitmap dialect", case, 0.4, 0.2),
            _blocks(f"{BOOKKEEPING}, {case}", f"{BOOKKEEPING}, {case}", 0.1, 0.05),
        )
    ),
    _path(TCP, CHECKED, 1.15, 1.05),
    _path(UNIX, CHECKED, 1.15, 1.05),
    _path(TCP, SOCKETS, 1.5, 1.25),
    _path(UNIX, SOCKETS, 1.7, 1.4),
    *(_file(work, MEMORY, CHECKED_FILE, 1.15, 1.05) for work in (SAVE, LOAD)),
    *(_file(work, MEMORY, FILE, 1.5, 1.25) for work in (SAVE, LOAD, LOAD_ON_ACCESS)),
    *(_file(work, DISK, FILE, 1.15, 1.05) for work in (SAVE, LOAD, LOAD_ON_ACCESS)),
    *(
        target
        for size in ("", LARGE)
        for target in (
            _skipping_unused(f"migration{size}", "migration time, idle guest", 0.25, 0.10),
            _skipping_unused(f"migration{size}", "data sent, idle guest", 0.10, 0.05),
            _beside_hints(f"migration{size}", "migration time, idle guest", 0.6, 0.3),
            _sending_all(f"migration{size}", 1.2, 0.9),
            _beside_hints(f"migration{size}", "downtime, idle guest", 1.0, 0.6),
            _skipping_unused(f"snapshot{size}", "snapshot time", 0.25, 0.10),
            _skipping_unused(f"snapshot{size}", "file size", 0.10, 0.05),
            _beside_hints(f"snapshot{size}", "snapshot downtime", 1.0, 0.5),
        )
    ),
    _start("QEMU pc", 1.0, 0.8),
    _start("QEMU microvm", 1.3, 1.0),
    _boot("QEMU pc", 0.9, 0.6),
    _boot("QEMU microvm", 1.2, 0.9),
    *(
        PerformanceTarget(
            f"stream {way} the guest: {contender} / {_QEMU}",
            "console",
            f"{way} the guest",
            contender,
            _QEMU,
            limit,
            goal,
        )
        for contender, limit, goal in (("pyvmm", 1.0, 0.8), ("pyvmm, command", 2.0, 1.5))
        for way in ("out of", "into")
    ),
    _unwatched("exit"),
    _unwatched("inflate"),
    _watched(RECORDED, 1.1, 1.03),
    _watched(WATCHED, 1.2, 1.05),
    _page(LOADED, 3.0, 1.5),
    *(_page(frame_case(script, "95th percentile"), 50.0, 20.0) for script in SCRIPTS),
    PerformanceTarget(
        "VMM memory (PSS): pyvmm / QEMU pc",
        "footprint",
        "PSS without guest RAM",
        "pyvmm",
        "QEMU pc",
        0.48,
        0.40,
    ),
)


class Headline(NamedTuple):
    """A target in words for a newcomer: the measurement of pyvmm, and what it is divided by."""

    measurement: str
    compared_with: str


HEADLINES: dict[str, Headline] = {
    "inflate, RAM touched, 1 vCPU: pyvmm, bitmap / QEMU pc": Headline(
        "take 7 of 8 GiB from a Linux guest, bitmap dialect", "QEMU, standard dialect"
    ),
    "inflate, RAM touched, 1 vCPU: pyvmm, standard / QEMU pc": Headline(
        "take 7 of 8 GiB from a Linux guest, standard dialect", "QEMU, standard dialect"
    ),
    "discard, every second page, 4 KiB pages: pyvmm, bitmap / C, batched madvise": Headline(
        "decode and discard 7 of 8 GiB, every second page", "C program that only discards"
    ),
    "discard, one run, huge pages: pyvmm, bitmap / C, batched madvise": Headline(
        "decode and discard 7 of 8 GiB, huge pages", "C program that only discards"
    ),
    "migration time, idle guest, 1 GiB: skipping unused pages / QEMU pc with free page hints": (
        Headline("migrate an idle 1 GiB guest, skipping unused pages", "QEMU with free page hints")
    ),
    "snapshot downtime, 1 GiB: skipping unused pages / QEMU pc with free page hints": Headline(
        "downtime of a snapshot of an idle 1 GiB guest", "QEMU with free page hints"
    ),
    "boot, 1 vCPU, 512 MiB: pyvmm / QEMU pc": Headline(
        "start the VMM and boot to user space", "QEMU"
    ),
    "VMM memory (PSS): pyvmm / QEMU pc": Headline("memory of the VMM without guest RAM", "QEMU"),
}
"""The targets, by name, that tell most about pyvmm, misses included."""
