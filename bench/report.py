# SPDX-License-Identifier: Apache-2.0
"""Tables of what was measured, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.measure import Case
from bench.results import Result


def write_report(output: Path, results: Sequence[Result]) -> None:
    """Print a table for each result."""
    console = Console()
    for result in results:
        console.print(_table(result))


def _table(result: Result) -> Table:
    table = Table(title=result.title, title_justify="left")
    for column in ("case", "contender", "median", "least to most", "ratio", "against"):
        table.add_column(column)
    for case in result.cases:
        for contender in case.rounds:
            table.add_row(case.name, contender, *_figures(case, contender))
    return table


def _figures(case: Case, contender: str) -> tuple[str, str, str, str]:
    values = case.rounds[contender]
    spread = f"{min(values):.4g} to {max(values):.4g} {case.unit}"
    if contender == case.against:
        return f"{case.median(contender):.4g} {case.unit}", spread, "", ""
    ratio = f"{case.ratio(contender):.3f}"
    return f"{case.median(contender):.4g} {case.unit}", spread, ratio, case.against
