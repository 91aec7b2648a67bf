# SPDX-License-Identifier: Apache-2.0
"""Docstrings open with a verb, an article or a noun, never with a clause that stands for a noun.

"What a queue holds" leaves its reader without a verb; "Return the buffers of a queue" or "The
buffers of a queue" does not. Ruff's D401 checks the imperative mood of functions' docstrings (see
pyproject.toml); this test adds what D401 does not see: relative clauses, in the docstrings of
modules, classes and attributes too. The names of tests follow the same rule.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator

import pytest

from tests.project.sources import PACKAGES, files, name_of

OPENINGS = "What|Who(?:m|ever)?|Whatever|Whichever|Whether|How|Where|Why|That|No(?:body|thing)"
TEST_NAME = re.compile(r"test_(?:what|who|whom|whoever|whatever|whether|how|where|why|nobody)_")
RELATIVE_CLAUSE = re.compile(rf"(?:{OPENINGS})\s+[a-z`]")


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of each string that stands alone: docstrings and docs of attributes."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield node.lineno, text


def native_docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of each triple-quoted string of a Cython file."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.STRING and token.string.endswith('"""'):
            yield token.start[0], token.string.strip('"')


def relative_openings(found: Iterator[tuple[int, str]]) -> list[tuple[int, str]]:
    """Return the docstrings that open with a relative clause standing for a noun."""
    return [(line, text) for line, text in found if RELATIVE_CLAUSE.match(text.strip())]


def test_no_docstring_opens_with_a_relative_clause() -> None:
    offences = [
        f"{name_of(path)}:{line}: {text.splitlines()[0]}"
        for path in files(*PACKAGES, suffixes=(".py", ".pyi", ".pyx"))
        for line, text in relative_openings(
            (native_docstrings if path.suffix == ".pyx" else docstrings)(path.read_text())
        )
    ]
    assert not offences, "\n".join(offences)


def test_no_test_is_named_by_a_relative_clause() -> None:
    offences = [
        f"{name_of(path)}:{node.lineno}: {node.name}"
        for path in files("tests")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and TEST_NAME.match(node.name)
    ]
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize(
    ("docstring", "offends"),
    [
        ("What the guest asks for.", True),
        ("Who listens no more is not listened for.", True),
        ("Whether a page is held.", True),
        ("How many pages are free.", True),
        ("Where a guest may arrive.", True),
        ("\n    What follows a line break.", True),
        ("Return what the guest asks for.", False),
        ("The number of free pages.", False),
        ("How-to: add a device.", False),
    ],
)
def test_the_rule_itself(docstring: str, offends: bool) -> None:
    source = f'def function():\n    """{docstring}"""\n\nlimit = 1\n"""Ordinary."""\n'
    assert bool(relative_openings(docstrings(source))) == offends
    assert bool(relative_openings(native_docstrings(source))) == offends
