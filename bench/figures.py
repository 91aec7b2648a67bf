# SPDX-License-Identifier: Apache-2.0
"""The figures we set out to reach: ratios of two medians of one run, never seconds.

Nothing fails when a figure is missed; the table says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.results import Result


@dataclass(frozen=True)
class Figure:
    """One goal: `contender` takes at most `at_most` of what `against` takes."""

    what: str
    bench: str
    case: str
    contender: str
    against: str
    at_most: float
    aim: float

    def measured_in(self, result: Result) -> bool:
        """Whether the case and both its contenders are there."""
        return any(
            case.name == self.case and {self.contender, self.against} <= case.rounds.keys()
            for case in result.cases
        )

    def reached(self, result: Result) -> float:
        """The ratio of the medians; KeyError when it was not measured."""
        return result.case(self.case).ratio(self.contender, self.against)


_BITMAP, _STANDARD, _QEMU = "pyvmm, bitmap", "pyvmm, standard", "QEMU pc"
_BEST, _PER_RUN, _PER_PAGE = (
    "C, best way",
    "C, one madvise per run",
    "C, one madvise per page",
)


def _device(case: str, against: str, at_most: float, aim: float) -> Figure:
    return Figure(f"{case}, against {against}", "device", case, _BITMAP, against, at_most, aim)


def _balloon(case: str, contender: str, at_most: float, aim: float) -> Figure:
    what = f"{case}: {contender}, against {_QEMU}"
    return Figure(what, "balloon", case, contender, _QEMU, at_most, aim)


def _left_out(bench: str, case: str, at_most: float, aim: float) -> Figure:
    what = f"{case}: unused pages left out, against all"
    return Figure(what, bench, case, _BITMAP, "pyvmm, bitmap, not asked", at_most, aim)


FIGURES: tuple[Figure, ...] = (
    *(
        _device(f"{pattern}, {pages} pages", _BEST, 1.05, 1.02)
        for pattern in ("one run", "runs of 2 MiB")
        for pages in ("4 KiB", "huge")
    ),
    _device("every other page, 4 KiB pages", _BEST, 1.15, 1.05),
    _device("every other page, huge pages", _BEST, 1.15, 1.05),
    _device("one run, huge pages", _PER_PAGE, 0.02, 0.01),
    _device("every other page, 4 KiB pages", _PER_RUN, 0.40, 0.33),
    *(
        figure
        for ram in ("untouched", "touched")
        for figure in (
            _balloon(f"inflate, RAM {ram}, 1 vCPU", _BITMAP, 0.15, 0.05),
            _balloon(f"deflate, RAM {ram}, 1 vCPU", _BITMAP, 0.20, 0.08),
            _balloon(f"inflate, RAM {ram}, 1 vCPU", _STANDARD, 1.0, 0.7),
        )
    ),
    _left_out("migration", "time, idle", 0.25, 0.10),
    _left_out("migration", "sent, idle", 0.10, 0.05),
    Figure(
        "time, idle: unused pages left out, against QEMU pc with free page hints",
        "migration",
        "time, idle",
        _BITMAP,
        "QEMU pc, hints",
        1.0,
        0.5,
    ),
    _left_out("snapshot", "time to save", 0.25, 0.10),
    _left_out("snapshot", "size of the file", 0.10, 0.05),
    Figure(
        "the guest stands still to be saved, against QEMU pc with free page hints",
        "snapshot",
        "the guest stands still",
        _BITMAP,
        "QEMU pc, hints",
        1.0,
        0.5,
    ),
    Figure("boot, against QEMU pc", "boot", "1 vCPU, 512 MiB", "pyvmm", "QEMU pc", 0.9, 0.6),
    Figure(
        "boot, against QEMU microvm", "boot", "1 vCPU, 512 MiB", "pyvmm", "QEMU microvm", 1.2, 0.9
    ),
    Figure(
        "PSS beside guest RAM, against QEMU pc",
        "footprint",
        "PSS beside 1 GiB of guest RAM",
        "pyvmm",
        "QEMU pc",
        0.8,
        0.6,
    ),
)
