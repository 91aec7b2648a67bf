# SPDX-License-Identifier: Apache-2.0
"""Reports of the results: tables on the terminal, and a page with tables and plots.

The page is `README.md` beside the results. The project's own README has a table of a few of them
between two marks, which a run that writes to bench/results updates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.encoding_tables import encoding_tables
from bench.results import Result
from bench.tables import (
    TextTable,
    cases_table,
    curves_table,
    headlines_table,
    proposal_table,
    stages_table,
    targets_table,
)
from pyvmm.files.output import write_output
from pyvmm.files.replacement import replace_file

PAGE = "README.md"
PAGE_START = b"# Benchmark results\n"
BEGIN = "<!-- benchmarks: written by make bench -->"
END = "<!-- end of benchmarks -->"
PROPOSAL_CASE = "inflate, RAM touched, 1 vCPU"
"""The case whose stages are shown beside those of the thread that proposed the bitmaps."""


def write_report(output: Path, results: Sequence[Result]) -> None:
    """Print every table, and write the page and its plots into the directory `output`."""
    from bench.plots import (
        draw,  # imports matplotlib, which a process that only measures does not need
    )

    console = Console()
    pictures = {result.bench: draw(result, output) for result in results}
    for table in (targets_table(results), *(t for r in results for t in tables_of(r))):
        if table.rows:
            console.print(_drawn(table))
    page = output / PAGE
    text = "\n".join(_page(results, pictures))
    write_output(page, text.encode(), PAGE_START)
    console.print(f"Page: {page}", soft_wrap=True)


def update_readme(readme: Path, output: Path, results: Sequence[Result]) -> None:
    """Write the headlines between the marks of the project's README."""
    text = readme.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme} has no marks for benchmarks")
    lines = _headlines(results, f"{output.parent.name}/{output.name}/{PAGE}")
    replace_file(readme, "\n".join((before + begin, *lines, end + after)).encode())


def tables_of(result: Result) -> Iterable[TextTable]:
    """Yield the tables of one benchmark, in the order of the page."""
    if result.bench == "encodings":
        yield from encoding_tables(result)
        return
    yield cases_table(result)
    yield curves_table(result)
    for case in result.cases:
        if case.stages:
            yield proposal_table(case) if case.name == PROPOSAL_CASE else stages_table(case)


def _page(results: Sequence[Result], pictures: dict[str, Path]) -> Iterable[str]:
    yield PAGE_START.decode()
    yield "Written by `make bench`, described in `bench/`. Compare ratios, not seconds.\n"
    yield from markdown_lines(targets_table(results))
    for result in results:
        yield f"## {result.title}\n"
        described = "; ".join(f"{name}: {value}" for name, value in result.machine.items())
        quick = "a quick run, not representative, " if result.quick else ""
        yield f"{quick}{result.taken}. {described}.\n"
        yield f"![{result.title}]({pictures[result.bench].name})\n"
        for table in tables_of(result):
            yield from markdown_lines(table)


def _headlines(results: Sequence[Result], page: str) -> Iterable[str]:
    yield ""
    yield from markdown_lines(headlines_table(results))
    if any(result.emulated for result in results):
        yield "The guests of both VMMs ran in the lab, an emulated machine: only ratios count.\n"
    yield f"[All results]({page})"


def markdown_lines(table: TextTable) -> Iterable[str]:
    """Yield the lines of `table` in Markdown; none if it has no rows."""
    if not table.rows:
        return
    yield f"**{table.title}**\n"
    yield "| " + " | ".join(table.columns) + " |"
    right = ["---:"] * (len(table.columns) - table.left)
    yield "| " + " | ".join(["---"] * table.left + right) + " |"
    for row in table.rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def _drawn(table: TextTable) -> Table:
    drawn = Table(title=table.title, title_justify="left")
    for number, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if number < table.left else "right")
    for row in table.rows:
        drawn.add_row(*row)
    return drawn
