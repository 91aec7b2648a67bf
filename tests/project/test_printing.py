# SPDX-License-Identifier: Apache-2.0
"""Only `pyvmm.standard_streams` prints text for people, so that all of it is made printable."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.project.sources import ROOT, files

PRINTERS = {"pyvmm/standard_streams/text.py", "pyvmm/progress/reporter.py"}
JSON = {"pyvmm/cli/json_output.py"}
STUDENTS_PROGRAMS = {"pyvmm/learn/chapter_01/exercise.py", "pyvmm/learn/chapter_01/solution.py"}
CONSOLE = "pyvmm/standard_streams/rich_console.py"
PATHS_FOR_PROGRAMS = "pyvmm/cli/image.py"


def offences(path: Path) -> Iterator[str]:
    """Yield calls that print without `printable`, and consoles or columns that take markup."""
    name = str(path.relative_to(ROOT))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and name != CONSOLE:
            names = {alias.name for alias in node.names}
            if node.module in ("rich", "rich.console") and names & {"Console", "print"}:
                yield f"{name}:{node.lineno}: imports rich's Console; use TextConsole"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called == "print" and name not in PRINTERS | JSON | STUDENTS_PROGRAMS:
                yield f"{name}:{node.lineno}: calls print; use pyvmm.standard_streams.text"
            if called in ("click.echo", "click.secho") and name != PATHS_FOR_PROGRAMS:
                yield f"{name}:{node.lineno}: calls {called}"
            keywords = {keyword.arg for keyword in node.keywords}
            if called == "TextColumn" and "markup" not in keywords:
                yield f"{name}:{node.lineno}: a column without markup=False"
            if called == "Live" and "console" not in keywords:
                yield f"{name}:{node.lineno}: a Live without a TextConsole"


def test_foreign_text_is_printed_in_one_place() -> None:
    assert [offence for path in files("pyvmm") for offence in offences(path)] == []
