# SPDX-License-Identifier: Apache-2.0
"""What was measured as rows of text, for the terminal and for Markdown alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bench.figures import FIGURES, Figure
from bench.measure import Case
from bench.results import Result

SEED_TITLE = "proposal of 2016, before"
SEED_STAGES = {"guest allocation": 0.065, "transport": 0.683, "decoding": 0.061, "discard": 0.19}
"""Shares of 4126 ms that the thread of October 2016 names: page allocation, sending PFNs, address
translation and madvise. It gives none for its bitmaps, only their 590 ms."""


@dataclass(frozen=True)
class TextTable:
    """A table before anybody decided how it is drawn; the first `left` columns hold words."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


def figures_table(results: Sequence[Result]) -> TextTable:
    """The figures set out to be reached, as far as they were measured."""
    by_name = {result.bench: result for result in results}
    rows = []
    for figure in FIGURES:
        result = by_name.get(figure.bench)
        if result is not None and figure.measured_in(result):
            rows.append(_figure_row(figure, result))
    return TextTable(
        "Figures to reach: ratios of medians",
        ("what", "at most", "aim", "reached", "in single rounds", ""),
        rows,
    )


def _figure_row(figure: Figure, result: Result) -> tuple[str, ...]:
    reached = figure.reached(result)
    low, high = result.case(figure.case).ratio_spread(figure.contender, figure.against)
    verdict = "missed" if reached > figure.at_most else "aim" if reached <= figure.aim else "kept"
    goals = (f"{figure.at_most:g}", f"{figure.aim:g}")
    return (figure.what, *goals, _ratio(reached), f"{_ratio(low)} to {_ratio(high)}", verdict)


def cases_table(result: Result) -> TextTable:
    """Every case but the points of curves, which are better looked at."""
    rows = [
        (case.name if first else "", contender, *_values(case, contender))
        for case in result.cases
        if case.x is None
        for first, contender in _marked_first(case.rounds)
    ]
    return TextTable(
        result.title, ("case", "contender", "median", "least to most", "ratio"), rows, left=2
    )


def curves_table(result: Result) -> TextTable:
    """A row for each point of each curve."""
    rows = [
        (case.name, *_values(case, contender)[:1], f"{case.median(contender) / case.x:.3g}")
        for case in result.cases
        if case.x
        for contender in case.rounds
        if contender != case.against
    ]
    return TextTable(f"{result.title}: points", ("case", "median", "for each unit of x"), rows)


def stages_table(case: Case) -> TextTable:
    """Where the time of one case goes, in shares of each contender's own total."""
    stages = list(dict.fromkeys(stage for parts in case.stages.values() for stage in parts))
    rows = []
    for contender, parts in case.stages.items():
        total = case.median(contender)
        shares = [f"{median(parts[s]) / total:.1%}" if s in parts else "" for s in stages]
        rows.append((contender, f"{total:.3g} {case.unit}", *shares))
    return TextTable(f"Stages: {case.name}", ("contender", "total", *stages), rows)


def seed_table(case: Case) -> TextTable:
    """`stages_table` with the row of the thread that proposed the bitmaps on top."""
    table = stages_table(case)
    shares = [SEED_STAGES.get(stage) for stage in table.columns[2:]]
    seed = (SEED_TITLE, "4.13 s", *("" if share is None else f"{share:.1%}" for share in shares))
    return TextTable(table.title, table.columns, [seed, *table.rows])


def _marked_first(names: Sequence[str] | dict[str, list[float]]) -> list[tuple[bool, str]]:
    return [(index == 0, name) for index, name in enumerate(names)]


def _values(case: Case, contender: str) -> tuple[str, str, str]:
    values = case.rounds[contender]
    spread = f"{shown(min(values))} to {shown(max(values))}" if len(values) > 1 else ""
    ratio = "1" if contender == case.against else _ratio(case.ratio(contender))
    return f"{shown(case.median(contender))} {case.unit}", spread, ratio


def shown(value: float) -> str:
    """A measured value with as many digits as mean something."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _ratio(value: float) -> str:
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}" if value < 10 else f"{value:.0f}"
