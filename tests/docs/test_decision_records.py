# SPDX-License-Identifier: Apache-2.0
"""The decision records in docs/adr: layout, numbers, statuses, and the list in index.md.

A record is a file `NNNN-short-title.md`, with an SPDX line, a title, a table with its status and
date, and three parts:

    # 12. Title
    | Status | accepted |                       or [partly] superseded by [N](NNNN-short-title.md)
    | Date | 2026-11-22 |                       and maybe ", revised 2026-11-27"
    | Supersedes | [N](NNNN-short-title.md) |   only if it does; "part of" before a partial one
    ## Context, ## Decision, ## Consequences

`problems` lists everything that breaks these rules.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pytest

from tests.project.sources import ROOT

RECORDS = ROOT / "docs" / "adr"
INDEX = "index.md"

LINK = r"\[(?P<number>\d+)\]\((?P<name>[^)]+)\)"
LAYOUT = re.compile(
    r"<!-- SPDX-License-Identifier: Apache-2\.0 -->\n"
    r"# (?P<number>\d+)\. (?P<title>.+)\n\n"
    r"\| Status \| (?P<status>.+) \|\n"
    r"\| --- \| --- \|\n"
    r"\| Date \| (?P<date>.+) \|\n"
    r"(?:\| Supersedes \| (?P<supersedes>.+) \|\n)?"
    r"\n## Context\n\n(?P<context>(?:(?!^## ).*\n)+)"
    r"\n## Decision\n\n(?P<decision>(?:(?!^## ).*\n)+)"
    r"\n## Consequences\n\n(?P<consequences>(?:(?!^## ).*\n)+)",
    re.MULTILINE,
)
STATUS = re.compile(rf"accepted|(?P<how>(?:partly )?superseded) by {LINK}")
SUPERSEDES = re.compile(rf"(?P<part>part of )?{LINK}")
DATE = re.compile(r"(?P<first>\d{4}-\d\d-\d\d)(?:, revised (?P<revised>\d{4}-\d\d-\d\d))?")


class Record(NamedTuple):
    """One record: its file name, and the head of its text."""

    name: str
    number: int
    title: str
    status: str
    date: str
    supersedes: str

    @property
    def row(self) -> str:
        """Return the row of the record in the index."""
        title, date = f"{self.number}. {self.title}", self.date.partition(",")[0]
        return f"| [{title}]({self.name}) | {self.status} | {date} |"


class Replacement(NamedTuple):
    """A record that supersedes another, as one of the two states it."""

    old: int
    old_name: str
    new: int
    new_name: str
    partly: bool


def parse(name: str, text: str) -> Record | None:
    """Return the record, or None if its layout is another."""
    found = LAYOUT.fullmatch(text)
    if found is None:
        return None
    fields = (found[field] or "" for field in ("title", "status", "date", "supersedes"))
    return Record(name, int(found["number"]), *fields)


def problems(texts: Mapping[str, str], index: str) -> Iterator[str]:
    """Yield a line for each broken rule; `texts` are the texts of the records by file name."""
    records: list[Record] = []
    for name, text in sorted(texts.items()):
        record = parse(name, text)
        if record is None:
            yield f"{name}: not SPDX line, title, table, Context, Decision, Consequences"
        else:
            records.append(record)
    for due, record in enumerate(records, 1):
        if record.number != due or not record.name.startswith(f"{due:04d}-"):
            yield f"{record.name}: number {due} is due, the title has {record.number}"
    yield from date_problems(records)
    yield from status_problems(records)
    listed = Counter(line for line in index.splitlines() if line.startswith("| ["))
    due_rows = Counter(record.row for record in records)
    yield from (f"{INDEX} lacks: {row}" for row in due_rows - listed)
    yield from (f"{INDEX} lists, or lists twice: {row}" for row in listed - due_rows)


def date_problems(records: list[Record]) -> Iterator[str]:
    """Yield a line for each date that is malformed or out of order."""
    previous = ""
    for record in records:
        found = DATE.fullmatch(record.date)
        if found is None or (found["revised"] or "9") <= found["first"]:
            yield f"{record.name}: no date: {record.date}"
        elif found["first"] < previous:
            yield f"{record.name}: older than the record before it"
        else:
            previous = found["first"]


def status_problems(records: list[Record]) -> Iterator[str]:
    """Yield a line for each status that is invalid or lacks its counterpart."""
    told_by_old, told_by_new = set(), set()
    for record in records:
        status = STATUS.fullmatch(record.status)
        if status is None:
            yield f"{record.name}: no status: {record.status}"
        elif status["how"]:
            new = int(status["number"]), status["name"]
            partly = status["how"].startswith("partly")
            told_by_old.add(Replacement(record.number, record.name, *new, partly))
        for entry in filter(None, record.supersedes.split(", ")):
            found = SUPERSEDES.fullmatch(entry)
            if found is None:
                yield f"{record.name}: supersedes no record: {entry}"
            else:
                old = int(found["number"]), found["name"]
                partly = bool(found["part"])
                told_by_new.add(Replacement(*old, record.number, record.name, partly))
    for each in told_by_old ^ told_by_new:
        yield f"{each.old_name} and {each.new_name} do not name each other, in part or whole"


def test_the_decision_records_follow_their_rules() -> None:
    texts = {path.name: path.read_text() for path in RECORDS.glob("*.md") if path.name != INDEX}
    assert texts
    found = list(problems(texts, (RECORDS / INDEX).read_text()))
    assert not found, "\n".join(found)


def record_text(number: int = 1, *, status: str = "accepted", more: str = "") -> str:
    """Return a valid record, superseded or superseding if `status` or `more` say so."""
    return (
        "<!-- SPDX-License-Identifier: Apache-2.0 -->\n"
        f"# {number}. A title\n\n"
        f"| Status | {status} |\n| --- | --- |\n| Date | 2026-11-22 |\n{more}"
        "\n## Context\n\nSome.\n\n## Decision\n\n- One.\n\n## Consequences\n\nMany.\n"
    )


def index_of(texts: Mapping[str, str]) -> str:
    """Return an index with the rows that `texts` require."""
    records = filter(None, (parse(name, text) for name, text in texts.items()))
    return "\n".join(record.row for record in records)


VALID = {
    "0001-a.md": record_text(status="partly superseded by [3](0003-c.md)"),
    "0002-b.md": record_text(2, status="superseded by [3](0003-c.md)"),
    "0003-c.md": record_text(
        3, more="| Supersedes | part of [1](0001-a.md), [2](0002-b.md) |\n"
    ).replace("2026-11-22", "2026-11-22, revised 2026-11-27"),
}


def test_decision_records_that_follow_the_rules_have_no_problem() -> None:
    assert list(problems(VALID, index_of(VALID))) == []


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("0005-e.md", record_text(5), "number 4 is due"),
        ("0004-d.md", record_text(5), "number 4 is due"),
        ("0004-d.md", record_text(4, status="rejected"), "no status"),
        ("0004-d.md", record_text(4, status="superseded by [9](0009-x.md)"), "each other"),
        ("0004-d.md", record_text(4, more="| Supersedes | [2](0002-b.md) |\n"), "each other"),
        ("0002-b.md", record_text(2), "each other"),
        ("0001-a.md", record_text(status="superseded by [3](0003-c.md)"), "each other"),
        ("0004-d.md", record_text(4).replace("2026-11-22", "yesterday"), "no date"),
        ("0004-d.md", record_text(4).replace("2026-11-22", "2026-11-21"), "older"),
        ("0004-d.md", record_text(4).replace("## Decision", "## Choice"), "Context, Decision"),
        ("0004-d.md", record_text(4).replace("Many.\n", ""), "Context, Decision"),
        ("0004-d.md", record_text(4).replace("<!-- SPDX", "<!--"), "Context, Decision"),
    ],
)
def test_a_decision_record_that_breaks_a_rule_is_found(name: str, text: str, problem: str) -> None:
    texts = {**VALID, name: text}
    assert any(problem in line for line in problems(texts, index_of(texts)))


def test_the_index_lists_each_record_once_with_its_status() -> None:
    index = index_of(VALID)
    first = index.splitlines()[0]
    assert list(problems(VALID, index.replace(first, "")))
    assert list(problems(VALID, f"{index}\n{first}"))
    assert list(problems(VALID, index.replace("partly superseded", "superseded")))
