# SPDX-License-Identifier: Apache-2.0
"""Retired words stay retired: the last column of the glossary, applied to code and documents.

Code spans of that column are identifiers, in which `*` stands for any characters. They are compared
with names, attributes, arguments, functions, classes and modules: from the syntax tree of Python
files and stubs, from the tokens of Cython files. Leading underscores are ignored. Quoted text of
the column is a phrase, looked for in every source and document as running text, across the ends of
lines, in any case. The glossary itself and the records of the past may use both.
"""

from __future__ import annotations

import ast
import functools
import io
import itertools
import re
import tokenize
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

import pytest

from tests.project.sources import PACKAGES, ROOT, files, name_of

GLOSSARY = ROOT / "docs" / "reference" / "glossary.md"
RECORDS = ("docs/reference/glossary.md", "CHANGELOG.md", "LICENSE")
CHECKERS = ("tests/project/test_words.py", "tests/project/test_docstrings.py")
PYTHON, CYTHON = (".py", ".pyi"), (".pyx", ".pxd")
TEXT = (*PYTHON, *CYTHON, ".md", ".toml", ".c", ".h", ".config", "")


class Row(NamedTuple):
    """One term of the glossary."""

    term: str
    meaning: str
    defined: str
    code: str
    formerly: str


def rows(glossary: str) -> list[Row]:
    """Return the rows of all tables of the glossary."""
    lines = [line for line in glossary.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [Row(*row) for row in cells if len(row) == 5 and row[0] not in ("Term", "---")]


def phrase_cells(glossary: str) -> list[str]:
    """Return the cells with retired phrases: the last of each term, the first of the phrases."""
    phrases = re.findall(r'^\| (".*?) \|', glossary, re.MULTILINE)
    return [*phrases, *(row.formerly for row in rows(glossary))]


def code_spans(cell: str) -> list[str]:
    """Return the `code spans` of a cell."""
    return re.findall(r"`([^`]+)`", cell)


class Retired:
    """The retired identifiers and phrases of a glossary."""

    def __init__(self, glossary: str) -> None:
        spans = {span.lstrip("_") for row in rows(glossary) for span in code_spans(row.formerly)}
        phrases = {
            phrase for cell in phrase_cells(glossary) for phrase in re.findall('"(.+?)"', cell)
        }
        self._exact = {span for span in spans if "*" not in span}
        self._patterns = sorted(spans - self._exact)
        words = "|".join(re.escape(phrase) for phrase in sorted(phrases))
        self._phrases = re.compile(rf"(?<![\w-])(?:{words})(?![\w-])", re.IGNORECASE)
        self._retired = functools.cache(self._is_retired)

    def _is_retired(self, name: str) -> bool:
        bare = name.lstrip("_")
        return bare in self._exact or any(fnmatchcase(bare, each) for each in self._patterns)

    def identifiers(self, found: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
        """Return those of the (line, name) pairs that are retired."""
        return [(line, name) for line, name in found if self._retired(name)]

    def phrases(self, text: str) -> list[tuple[int, str]]:
        """Return (line, phrase) of each retired phrase in a source or document."""
        joined, starts = running_text(text)
        return [
            (sum(start <= match.start() for start in starts), match[0])
            for match in self._phrases.finditer(joined)
        ]


def running_text(text: str) -> tuple[str, list[int]]:
    """Join the lines without indentation and comment signs; return it, and where each begins."""
    bare = [re.sub(r'^[\s#*>"/]+', "", line).rstrip(' \t\\"') for line in text.splitlines()]
    starts = [0, *itertools.accumulate(len(line) + 1 for line in bare)]
    return " ".join(bare), starts[:-1]


def python_names(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of each identifier of a Python file or stub."""
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield line, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield line, name
            case ast.ClassDef(name=name) | ast.MatchAs(name=str(name)):
                yield line, name
            case ast.keyword(arg=str(name)):
                yield line, name
            case ast.alias(name=name, asname=asname):
                yield from ((line, part) for part in (*name.split("."), asname) if part)
            case ast.ImportFrom(module=str(name)):
                yield from ((line, part) for part in name.split("."))


def cython_names(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of each identifier of a Cython file."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], token.string


@pytest.fixture(scope="module")
def retired() -> Retired:
    return Retired(GLOSSARY.read_text())


def test_no_retired_identifier_returns(retired: Retired) -> None:
    offences = []
    for path in files(*PACKAGES, suffixes=(*PYTHON, *CYTHON)):
        names = (python_names if path.suffix in PYTHON else cython_names)(path.read_text())
        module_name = [(1, part) for part in (*path.relative_to(ROOT).parts[:-1], path.stem)]
        found = retired.identifiers([*module_name, *names])
        offences += sorted({f"{name_of(path)}:{line}: {name}" for line, name in found})
    assert not offences, "\n".join(offences)


def test_no_retired_phrase_returns(retired: Retired) -> None:
    offences = [
        f"{name_of(path)}:{line}: {phrase}"
        for path in files(suffixes=TEXT)
        if not name_of(path).startswith((*RECORDS, *CHECKERS))
        for line, phrase in retired.phrases(path.read_text())
    ]
    assert not offences, "\n".join(offences)


def test_the_glossary_names_files_that_exist() -> None:
    glossary = rows(GLOSSARY.read_text())
    assert glossary
    missing = {
        path for row in glossary for path in code_spans(row.code) if not (ROOT / path).exists()
    }
    assert missing == set()
    assert all(code_spans(row.code) for row in glossary)


def test_the_glossary_defines_each_term_once() -> None:
    terms = [row.term for row in rows(GLOSSARY.read_text())]
    assert sorted(terms) == sorted(set(terms))


EXAMPLE = """
| Term | Meaning | Defined in | In our code | Formerly |
| --- | --- | --- | --- | --- |
| host notifier | ... | QEMU | `devices/ports.py` | `*doorbell*` `_Wish` |
| downtime | ... | QEMU | `devices` | "stands still" |
| ring | An ordinary word. | VIRTIO | `devices` | |

| Phrase | Instead |
| --- | --- |
| "once more", "as was wished" | again |
"""


@pytest.mark.parametrize(
    "source",
    [
        "doorbell = 1",
        "machine._ring_doorbell()",
        "def update_doorbells(): pass",
        "class Wish: pass",
        "class _Wish: pass",
        "import pyvmm.doorbells",
        "from pyvmm.doorbells import x",
        "from pyvmm import x as Wish",
        "def f(doorbell): pass",
        "f(doorbell=1)",
        "match x:\n    case int() as doorbell: pass",
    ],
)
def test_a_retired_identifier_is_found(source: str) -> None:
    retired = Retired(EXAMPLE)
    assert retired.identifiers(python_names(source))
    assert retired.identifiers(cython_names(source))


@pytest.mark.parametrize(
    "source", ["ring = place = part = 1", "wish = 1", "class WishList: pass", "x = 'doorbell'"]
)
def test_other_names_and_ordinary_words_are_legal(source: str) -> None:
    retired = Retired(EXAMPLE)
    assert retired.identifiers(python_names(source)) == []
    assert retired.identifiers(cython_names(source)) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The guest stands still.", [(1, "stands still")]),
        ("One line.\n# The guest Stands\n#     still.", [(2, "Stands still")]),
        ('f"the guest stands "\n    "still"', [(1, "stands still")]),
        ("Once\n  more, as\nwas wished", [(1, "Once more"), (2, "as was wished")]),
        ("It understands still less.", []),
        ("It stands, still.", []),
    ],
)
def test_phrases_are_found_across_lines(text: str, found: list[tuple[int, str]]) -> None:
    assert Retired(EXAMPLE).phrases(text) == found
