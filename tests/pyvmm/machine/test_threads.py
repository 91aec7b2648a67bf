# SPDX-License-Identifier: Apache-2.0
"""The table of threads matches the `Threads:` sections of classes and the running threads."""

from __future__ import annotations

import ast
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.machine import threads
from pyvmm.machine.threads import Owner

ROOT = Path(__file__).parents[3]
SECTION = re.compile(r"Threads:(.*?)(?:\n\n|\Z)", re.DOTALL)


def rows() -> dict[str, str]:
    """Return the name of each thread of the table, as the operating system sees it."""
    table = (threads.__doc__ or "").split("| lock |")[0]
    found = re.findall(r"^\| ([a-zA-Z ]+) \| (?:`([^`]+)`|the owner's) \|", table, re.MULTILINE)
    return dict(found)


def sections() -> Iterator[tuple[str, str]]:
    """Yield every `Threads:` section of a docstring below pyvmm, with where it is."""
    for path in sorted((ROOT / "pyvmm").rglob("*.py")):
        if path.name == "threads.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                for text in SECTION.findall(ast.get_docstring(node) or ""):
                    yield f"{path.relative_to(ROOT)}: {getattr(node, 'name', 'module')}", text


def test_the_table_has_its_rows() -> None:
    assert len(rows()) == 12
    assert rows()["vCPU"] == "vcpuN"


@pytest.mark.parametrize(
    ("place", "text"), list(sections()), ids=[place for place, _ in sections()]
)
def test_a_threads_section_names_rows_of_the_table(place: str, text: str) -> None:
    names = [*rows(), r"any\b", "thread that made the machine"]
    assert re.search("|".join(names), text), text


@pytest.mark.parametrize("name", [name for name in rows().values() if name])
def test_threads_have_the_names_in_the_table(name: str) -> None:
    pattern = '"' + re.escape(name) + '"' if not name.endswith("N") else 'f"' + name[:-1] + "{"
    sources = [path.read_text() for path in (ROOT / "pyvmm").rglob("*.py")]
    assert any(pattern in text or re.search(pattern, text) for text in sources)


def thread_names() -> Iterator[str]:
    """Yield the start of every name that pyvmm gives a thread."""
    for path in sorted((ROOT / "pyvmm").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
            called = called.id if isinstance(called, ast.Name) else called
            if called == "Thread":
                names = [each.value for each in node.keywords if each.arg == "name"]
            elif called in ("Worker", "call_in_thread", "StartedCall"):
                names = node.args[:1]
            elif called == "call_within":
                names = node.args[1:2]
            else:
                continue
            assert names, f"{path}:{node.lineno} starts a thread without a name"
            yield from literal_starts(names[0])


def literal_starts(name: ast.expr) -> Iterator[str]:
    """Yield the literal text that `name` begins with, unless another caller passes it."""
    if isinstance(name, ast.JoinedStr):
        name = name.values[0]
    if isinstance(name, ast.Constant):
        yield str(name.value)


def test_the_documents_name_every_thread() -> None:
    documents = (ROOT / "docs/architecture/threads.md").read_text() + (threads.__doc__ or "")
    names = {*thread_names()}
    assert {"snapshot", "stdin copier ", "vcpu-throttle", "connect "} <= names
    assert {name for name in names if f"`{name}" not in documents} == set()


def test_an_owner_knows_its_thread() -> None:
    owner = Owner()
    seen: list[bool] = []

    def check(adopt: bool) -> None:
        if adopt:
            owner.adopt()
        seen.append(owner.is_current())

    for adopt in (False, True):
        thread = threading.Thread(target=check, args=(adopt,))
        thread.start()
        thread.join()
    assert seen == [False, True]
    assert not owner.is_current()
