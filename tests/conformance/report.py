# SPDX-License-Identifier: Apache-2.0
"""Write docs/reference/conformance.md: each requirement of VIRTIO, its tests, their results.

There are three inputs. `statements.toml` lists the requirements. A test names those it tests with
`@pytest.mark.conformance("2.1.2-1", ...)`; `marked_tests` finds the marks in the sources, so that
nothing needs to be run or even imported. The results come from the JUnit reports of pytest:

    python -m tests.conformance.report build/conformance-*.xml

`make conformance` does both. `problems` lists contradictions between statements and marks, and
`tests/conformance/test_conformance_document.py` fails when the document is out of date.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "reference" / "conformance.md"
STATEMENTS = Path(__file__).with_name("statements.toml")

LEVELS = ("MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "MAY", "text")
SHOWN = "shown by a test"
REASONS = ("not taken", "not applicable", "not implemented", "not visible")
PASSED, FAILED, SKIPPED, NOT_RUN = "passed", "failed", "skipped", "not run"

Results = Mapping[str, str]
"""The result of each test, by ``path::function``."""


@dataclass(frozen=True)
class Statement:
    """One requirement; `reason` and `why` are set if it is not to be tested."""

    id: str
    level: str
    text: str
    reason: str = SHOWN
    why: str = ""


@dataclass(frozen=True)
class Clause:
    number: str
    title: str
    statements: tuple[Statement, ...]


def read_statements() -> tuple[dict[str, str], list[Clause]]:
    """Return the titles of the chapters, and all clauses in order."""
    data = tomllib.loads(STATEMENTS.read_text())
    chapters = data.pop("chapters")
    clauses = []
    for number, table in data.items():
        title = table.pop("title")
        statements = tuple(Statement(f"{number}-{n}", *row) for n, row in table.items())
        clauses.append(Clause(number, title, statements))
    return chapters, clauses


def marked_tests() -> dict[str, list[str]]:
    """Return the tests, as ``path::function``, that carry the mark of each statement."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                test = f"{path.relative_to(ROOT)}::{node.name}"
                for statement in _marks(node):
                    found.setdefault(statement, []).append(test)
    return found


def _marks(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == (
            "pytest.mark.conformance"
        ):
            yield from (ast.literal_eval(argument) for argument in decorator.args)


def problems(clauses: list[Clause], tests: Mapping[str, list[str]]) -> list[str]:
    """Return the contradictions between the table of statements and the marks."""
    statements = {each.id: each for clause in clauses for each in clause.statements}
    found = [f"{id_}: no such statement, in {tests[id_][0]}" for id_ in tests.keys() - statements]
    for each in statements.values():
        if each.level not in LEVELS:
            found.append(f"{each.id}: there is no level {each.level!r}")
        if each.reason == SHOWN and each.id not in tests:
            found.append(f"{each.id}: no test shows it")
        if each.reason != SHOWN and (each.reason not in REASONS or not each.why):
            found.append(f"{each.id}: say why no test shows it")
        if each.reason != SHOWN and each.id in tests:
            found.append(f"{each.id}: {each.reason}, but {tests[each.id][0]} shows it")
    return sorted(found)


def read_results(*reports: Path) -> dict[str, str]:
    """Read the results of JUnit reports; the worst case is the result of a test."""
    worst_first = (FAILED, SKIPPED, PASSED)
    results: dict[str, str] = {}
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):
            children = {child.tag for child in case}
            failed = children & {"failure", "error"}
            outcome = FAILED if failed else SKIPPED if "skipped" in children else PASSED
            path = case.get("classname", "").replace(".", "/") + ".py"
            test = f"{path}::{case.get('name', '').partition('[')[0]}"
            results[test] = min(outcome, results.get(test, PASSED), key=worst_first.index)
    return results


def render(
    chapters: Mapping[str, str],
    clauses: list[Clause],
    tests: Mapping[str, list[str]],
    results: Results,
) -> str:
    """Return the whole document."""
    lines = [_INTRODUCTION, *_summary(chapters, clauses, tests)]
    for chapter, title in chapters.items():
        lines += ["", f"## {chapter} {title}"]
        for clause in _of_chapter(clauses, chapter):
            lines += ["", f"### {clause.number} {clause.title}", ""]
            lines += ["| | The device … | Shown by | Result |", "| --- | --- | --- | --- |"]
            lines += [_row(each, tests.get(each.id, []), results) for each in clause.statements]
    return "\n".join(lines) + "\n"


def _of_chapter(clauses: list[Clause], chapter: str) -> list[Clause]:
    return [clause for clause in clauses if clause.number.split(".")[0] == chapter]


def _summary(
    chapters: Mapping[str, str], clauses: list[Clause], tests: Mapping[str, list[str]]
) -> list[str]:
    columns = (SHOWN, *REASONS)
    lines = [f"| chapter | statements | {' | '.join(columns)} |"]
    lines.append("| --- " * (len(columns) + 2) + "|")
    totals: Counter[str] = Counter()
    for chapter, title in chapters.items():
        of_chapter = _of_chapter(clauses, chapter)
        counts = Counter(each.reason for clause in of_chapter for each in clause.statements)
        totals += counts
        lines.append(_counts(f"{chapter} {title}", [counts[column] for column in columns]))
    lines.append(_counts("**all**", [totals[column] for column in columns]))
    number = len({test for each in tests.values() for test in each})
    return [*lines, "", f"{number} tests show them."]


def _counts(title: str, counts: list[int]) -> str:
    return f"| {title} | {sum(counts)} | {' | '.join(str(count or '') for count in counts)} |"


def _row(statement: Statement, tests: list[str], results: Results) -> str:
    start = f"| {statement.id.rpartition('-')[2]} {statement.level} | {statement.text} |"
    if statement.reason != SHOWN:
        return f"{start} *{statement.reason}*: {statement.why} | |"
    links = []
    for test in tests:
        path, _, function = test.partition("::")
        links.append(f"[{function.removeprefix('test_')}](../../{path})")
    outcomes = {results.get(test, NOT_RUN) for test in tests}
    worst = next(each for each in (FAILED, NOT_RUN, SKIPPED, PASSED) if each in outcomes)
    return f"{start} {', '.join(links)} | {worst} |"


_INTRODUCTION = """\
<!-- Generated from the tests by `make conformance`: do not edit. -->
# Conformance to VIRTIO 1.2

All requirements of version 1.2 of the [specification][virtio] on PCI devices with split virtqueues,
on the console, the entropy device and the memory balloon, in our words and under its clause
numbers, with the tests of each and their results. A statement describes the device, so "MUST NOT
write" in the specification is "writes to no" here. The level "text" marks a duty that the
specification states outside its lists of requirements; "(1.3)" marks an addition of version 1.3.
The requirements of a feature that is not offered share one row.

The statements are in [statements.toml](../../tests/conformance/statements.toml); tests refer to
them with `@pytest.mark.conformance`. A statement without a test gives the reason: it is a
permission **not taken**, **not applicable** to this device, **not implemented**, or **not visible**
from outside the device.

The document covers the standard dialect of the balloon. The others share all but 5.5: they are
versions of an extension from outside the specification that gives device feature bits 3 and 4
another meaning, and are offered only to guests configured for them.

[virtio]: https://docs.oasis-open.org/virtio/virtio/v1.2/virtio-v1.2.html
"""


def main(reports: list[str]) -> int:
    chapters, clauses = read_statements()
    tests = marked_tests()
    found = problems(clauses, tests)
    if not found:
        results = read_results(*map(Path, reports))
        DOCUMENT.write_text(render(chapters, clauses, tests, results))
        marked = sorted({test for each in tests.values() for test in each})
        outcomes = {test: results.get(test, NOT_RUN) for test in marked}
        found = [f"{test}: {end}" for test, end in outcomes.items() if end != PASSED]
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
