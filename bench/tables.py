# SPDX-License-Identifier: Apache-2.0
"""Results as rows of text, for the terminal and for Markdown alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from bench.measure import Case
from bench.results import Result
from bench.targets import HEADLINES, TARGETS, PerformanceTarget

ROUNDS = "rounds"
"""The column that has the number of rounds."""

PROPOSAL_TITLE = "patch series of 2016, before"
PROPOSAL_STAGES = {
    "guest allocation": 0.065,
    "transport": 0.683,
    "decoding": 0.061,
    "discard": 0.19,
}
"""Shares of 4126 ms that the thread of October 2016 reports: page allocation, sending PFNs, address
translation and madvise. For its bitmaps it reports only the total of 590 ms."""


@dataclass(frozen=True)
class TextTable:
    """A table independent of its rendering; the first `left` columns are left-aligned."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


def targets_table(results: Sequence[Result], where: str = "") -> TextTable:
    """Return a row for each target that was measured; `where` is for the title."""
    rows = [_target_row(target, result) for target, result in _measured_targets(results)]
    columns = ("ratio of medians, or median", "limit", "goal", "measured", "single rounds", "")
    return TextTable(f"Performance targets{where} (lower is better)", columns, rows)


def headlines_table(results: Sequence[Result]) -> TextTable:
    """Return a row for each of the `HEADLINES` that was measured, those of the lab last."""
    measured = {target.name: (target, result) for target, result in _measured_targets(results)}
    found = [(line, *measured[name]) for name, line in HEADLINES.items() if name in measured]
    rows = [
        (
            headline.measurement,
            result.named(headline.compared_with),
            "in the lab" if result.emulated else "natively",
            ratio_text(target.measured(result)),
            f"{target.limit:g}",
            _verdict(target, result),
        )
        for headline, target, result in sorted(found, key=lambda row: row[2].emulated)
    ]
    columns = ("pyvmm", "compared with", "measured", "ratio", "limit", "")
    return TextTable("Time or memory of pyvmm (lower is better)", columns, rows, left=3)


def _measured_targets(
    results: Sequence[Result],
) -> Iterator[tuple[PerformanceTarget, Result]]:
    by_name = {result.bench: result for result in results}
    for target in TARGETS:
        result = by_name.get(target.bench)
        if result is not None and target.is_in(result):
            yield target, result


def _target_row(target: PerformanceTarget, result: Result) -> tuple[str, ...]:
    measured, (low, high) = target.measured(result), target.spread(result)
    unit = target.unit(result)
    text, after = (shown, f" {unit}") if unit else (ratio_text, "")
    spread = f"{text(low)} to {text(high)}" if low < high else ""
    bounds = (f"{target.limit:g}{after}", f"{target.goal:g}{after}")
    name, verdict = result.named(target.name), _verdict(target, result)
    return (name, *bounds, f"{text(measured)}{after}", spread, verdict)


def _verdict(target: PerformanceTarget, result: Result) -> str:
    measured = target.measured(result)
    verdict = "goal reached" if measured <= target.goal else "within limit"
    if measured > target.limit:
        verdict = "missed"
    if target.has_enough_rounds(result):
        return verdict
    return f"{verdict}; {rounds_text(len(result.case(target.case).rounds[target.contender]))}"


def cases_table(result: Result) -> TextTable:
    """Return the rows of every case, except points of curves, which have a table of their own."""
    rows = [
        (case.name if first else "", contender, *_values(case, contender))
        for case in result.cases
        if case.x is None
        for first, contender in _marked_first(case.rounds)
    ]
    return TextTable(
        result.title, ("case", "contender", "median", "min to max", ROUNDS, "ratio"), rows, left=2
    )


def curves_table(result: Result) -> TextTable:
    """Return a row for each point of each curve."""
    rows = [
        (case.name, *_values(case, contender)[:1], f"{case.median(contender) / case.x:.3g}")
        for case in result.cases
        if case.x
        for contender in case.rounds
        if contender != case.against
    ]
    return TextTable(f"{result.title}: points", ("case", "median", "for each unit of x"), rows)


def stages_table(case: Case) -> TextTable:
    """Return the stages of one case, in shares of each contender's own total."""
    stages = list(dict.fromkeys(stage for parts in case.stages.values() for stage in parts))
    rows = []
    for contender, parts in case.stages.items():
        total = case.median(contender)
        shares = [f"{median(parts[s]) / total:.1%}" if s in parts else "" for s in stages]
        rows.append((contender, f"{total:.3g} {case.unit}", *shares))
    return TextTable(f"Stages: {case.name}", ("contender", "total", *stages), rows)


def proposal_table(case: Case) -> TextTable:
    """Return `stages_table` with a first row from the thread that proposed the bitmaps."""
    table = stages_table(case)
    shares = [PROPOSAL_STAGES.get(stage) for stage in table.columns[2:]]
    proposal = (
        PROPOSAL_TITLE,
        "4.13 s",
        *("" if share is None else f"{share:.1%}" for share in shares),
    )
    return TextTable(table.title, table.columns, [proposal, *table.rows])


def _marked_first(names: Sequence[str] | dict[str, list[float]]) -> list[tuple[bool, str]]:
    return [(index == 0, name) for index, name in enumerate(names)]


def rounds_text(count: int) -> str:
    """Return `count` rounds in words."""
    return f"{count} round" if count == 1 else f"{count} rounds"


def _values(case: Case, contender: str) -> tuple[str, str, str, str]:
    values = case.rounds[contender]
    spread = f"{shown(min(values))} to {shown(max(values))}" if len(values) > 1 else ""
    ratio = "1" if contender == case.against else ratio_text(case.ratio(contender))
    rounds = str(len(values)) + ("" if case.has_enough_rounds(contender) else ": too few")
    return f"{shown(case.median(contender))} {case.unit}", spread, rounds, ratio


def shown(value: float) -> str:
    """Return a measured value with its significant digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def ratio_text(value: float) -> str:
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}" if value < 10 else f"{value:.0f}"
