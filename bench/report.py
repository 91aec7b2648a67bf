# SPDX-License-Identifier: Apache-2.0
"""Reports of the results: tables on the terminal, and a page with tables and plots.

The page is `README.md` beside the results: native figures first, then those of the lab, then those
of large guests. The project's own README has a table of a few of them
between two marks, which a run that writes to bench/results updates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from bench.catalogue import CATALOGUE
from bench.encoding_tables import encoding_tables
from bench.measure import ENOUGH_ROUNDS
from bench.peers import PINNED_VERSION
from bench.results import Result
from bench.tables import (
    ROUNDS,
    TextTable,
    cases_table,
    curves_table,
    headlines_table,
    proposal_table,
    rounds_text,
    stages_table,
    targets_table,
)
from pyvmm.files.output import write_output
from pyvmm.files.replacement import replace_file

PAGE = "README.md"
PAGE_START = b"# Benchmark results\n"
BEGIN = "<!-- benchmarks: written by make bench -->"
END = "<!-- end of benchmarks -->"
NATIVE_EXPLANATION = (
    "Nothing is emulated. Guests, where there are any, are of a few instructions, unless the KVM of"
    " the machine runs Linux."
)
LAB_EXPLANATION = (
    "Processor and KVM are emulated, for pyvmm and QEMU alike. All of it takes many times as long"
    " as on hardware, Python more than the rest: only ratios count, and they predict nothing."
)
APPENDIX_EXPLANATION = "A turn takes minutes in the lab, so there is one round: an indication."
PROPOSAL_CASE = "inflate, RAM touched, 1 vCPU"
"""The case whose stages are shown beside those of the thread that proposed the bitmaps."""


def write_report(output: Path, results: Sequence[Result]) -> None:
    """Print every table, and write the page and its plots into the directory `output`."""
    from bench.plots import (
        draw,  # imports matplotlib, which a process that only measures does not need
    )

    console = Console()
    pictures = {result.bench: draw(result, output) for result in results}
    for table in (*_target_tables(results), *(t for r in results for t in tables_of(r))):
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
    result = result.with_versions()
    if result.bench == "encodings":
        yield from encoding_tables(result)
        return
    yield cases_table(result)
    yield curves_table(result)
    for case in result.cases:
        if case.stages:
            yield proposal_table(case) if case.name == PROPOSAL_CASE else stages_table(case)


class _Section(NamedTuple):
    """A part of the page: results of one environment."""

    heading: str
    where: str
    """The environment, at the end of the title of its table."""
    explanation: str
    results: list[Result]


def _sections(results: Sequence[Result]) -> list[_Section]:
    main = [result for result in results if not _is_appendix(result)]
    return [
        _Section(
            "Native: the processor and the KVM of a real machine",
            ", native",
            NATIVE_EXPLANATION,
            [result for result in main if not result.emulated],
        ),
        _Section(
            "In the lab: an emulated machine",
            ", in the lab",
            LAB_EXPLANATION,
            [result for result in main if result.emulated],
        ),
        _Section(
            "Appendix: guests of 8 GiB",
            ", guests of 8 GiB",
            APPENDIX_EXPLANATION,
            [result for result in results if _is_appendix(result)],
        ),
    ]


def _is_appendix(result: Result) -> bool:
    benchmark = CATALOGUE.get(result.bench)
    return benchmark is not None and benchmark.is_appendix


def _target_tables(results: Sequence[Result]) -> Iterable[TextTable]:
    """Yield a table of targets for each section."""
    for section in _sections(results):
        yield targets_table(section.results, section.where)


def _page(results: Sequence[Result], pictures: dict[str, Path]) -> Iterable[str]:
    yield PAGE_START.decode()
    yield "Written by `make bench`, described in `bench/`.\n"
    yield "* Compare ratios within one benchmark, not seconds, and not one benchmark with another."
    yield (
        f"* A figure is the median of its rounds. Fewer than {ENOUGH_ROUNDS} rounds are an"
        " indication, and marked; counts that are the same each time need only one."
    )
    yield f"* QEMU is version {PINNED_VERSION}, of Debian 12, where no other version is named.\n"
    for table in _target_tables(results):
        yield from markdown_lines(table)
    for section in _sections(results):
        if section.results:
            yield f"## {section.heading}\n"
            yield f"{section.explanation}\n"
        for result in section.results:
            yield from _described(result, pictures[result.bench])


def _described(result: Result, picture: Path) -> Iterable[str]:
    """Yield the lines of one benchmark."""
    yield f"### {result.title}\n"
    described = "; ".join(f"{name}: {value}" for name, value in result.machine.items())
    quick = "a quick run, not representative, " if result.quick else ""
    yield f"{quick}{result.taken}. {described}.\n"
    if not result.has_pinned_qemu:
        yield f"QEMU is not the pinned version, {PINNED_VERSION}.\n"
    yield f"![{result.title}]({picture.name})\n"
    tables = list(tables_of(result))
    yield from _rounds_note(result, tables)
    for table in tables:
        yield from markdown_lines(table)


def _rounds_note(result: Result, tables: Sequence[TextTable]) -> Iterable[str]:
    """Yield a line about the rounds of tables that have no column for them, if they are too few."""
    few = {
        len(values)
        for case in result.cases
        for contender, values in case.rounds.items()
        if not case.has_enough_rounds(contender)
    }
    if few and any(table.rows and ROUNDS not in table.columns for table in tables):
        low, high = min(few), max(few)
        count = f"{low} to {high} rounds" if low < high else rounds_text(low)
        yield f"Tables without a column of rounds have medians of {count}, an indication.\n"


def _headlines(results: Sequence[Result], page: str) -> Iterable[str]:
    yield ""
    yield from markdown_lines(headlines_table(results))
    if any(result.emulated for result in results):
        yield "In the lab the guests of both VMMs ran in an emulated machine: only ratios count.\n"
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
