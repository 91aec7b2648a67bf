# SPDX-License-Identifier: Apache-2.0
"""Tables of the benchmark "encodings": a row for each contender, and how the encodings compare."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from bench.encoding_cases import (
    BITMAP,
    BLOCKS,
    DIRECTIONS,
    FREE_MEMORY,
    HYBRID,
    QUANTITIES,
    RAM,
    RANGES,
    RATES,
    STANDARD,
    encoding_case,
)
from bench.measure import Case
from bench.results import Result
from bench.tables import TextTable, ratio_text, shown, stages_table

COMPARED = (HYBRID, RANGES, BITMAP + BLOCKS, HYBRID + BLOCKS, RANGES + BLOCKS)
"""Divided by the bitmap."""


def encoding_tables(result: Result) -> Iterator[TextTable]:
    """Yield the tables of what was measured; cases in none of them are in the JSON only."""
    cases = {case.name: case for case in result.cases}
    for direction in DIRECTIONS:
        for state in FREE_MEMORY:
            if encoding_case("time", direction, state) in cases:
                yield _quantities_table(cases, direction, state)
    yield _ratios_table(cases)
    yield _rates_table(cases)
    for ram in RAM:
        yield stages_table(cases[f"{DIRECTIONS[0]}, RAM {ram}"])


def _quantities_table(cases: dict[str, Case], direction: str, state: str) -> TextTable:
    found = {what: cases.get(encoding_case(what, direction, state)) for what in QUANTITIES}
    measured = {what: case for what, case in found.items() if case is not None}
    columns = [
        what if what == QUANTITIES[what].unit else f"{what}, {QUANTITIES[what].unit}"
        for what in measured
    ]
    rows = [
        (contender, *(_median(case, contender) for case in measured.values()))
        for contender in measured["time"].rounds
    ]
    return TextTable(f"{direction}, free memory {state}", ("", *columns), rows)


def _ratios_table(cases: dict[str, Case]) -> TextTable:
    """Return what is divided by the bitmap, and where it wins."""
    rows = []
    for what in ("bytes on the queue", "driver", "device", "time", "driver memory"):
        for direction in DIRECTIONS:
            for state in FREE_MEMORY:
                case = cases.get(encoding_case(what, direction, state))
                if case is not None:
                    ratios = [ratio_text(case.ratio(each, BITMAP)) for each in COMPARED]
                    rows.append((f"{what}: {direction}, free memory {state}", *ratios))
    return TextTable(f"Divided by {BITMAP} (below 1 is better)", ("", *COMPARED), rows)


def _rates_table(cases: dict[str, Case]) -> TextTable:
    """Return the rates, each with its ratio to that of its baseline."""
    names = [f"{what}, RAM {ram}" for what, ram in (*product(RATES, RAM), ("touch", RAM[1]))]
    contenders = cases[names[0]].rounds
    rows = [(each, *(_rate(cases[name], each) for name in names)) for each in contenders]
    title = f"GiB/s (higher is better), and ratio to {STANDARD}; of touch to {BITMAP}"
    return TextTable(title, ("", *names), rows)


def _rate(case: Case, contender: str) -> str:
    if contender not in case.rounds:
        return ""
    return f"{shown(case.median(contender))} ({case.ratio(contender):.3g})"


def _median(case: Case, contender: str) -> str:
    return shown(case.median(contender)) if contender in case.rounds else ""
