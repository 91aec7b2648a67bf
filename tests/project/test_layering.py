# SPDX-License-Identifier: Apache-2.0
"""The rooms: which may import which, what may be in them, and when an import may be deferred.

The contracts are import-linter's, in pyproject.toml: `lint-imports` checks them and shows each
offence. Its "acyclic siblings" contract finds cycles between the members of each package, at every
depth. It compares siblings only, so a test here also looks for cycles of single modules in the same
graph (`grimp`, which import-linter is built on); imports for type checking count.
"""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project.sources import PRODUCT, ROOT, files, name_of

AT_ROOT = {"__init__", "__main__", "config", "errors", "units", "version", "vm"}
NO_ROOMS = {"core", "util", "utils", "common", "misc", "helpers"}
COST = re.compile(r"\d+(\.\d+)? (ms|us|modules?|[KM]iB)\b")
IMPORTS = ast.Import | ast.ImportFrom


def test_imports_go_one_way() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    if not lint.exists():
        pytest.skip("import-linter is not installed")
    result = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "0 broken" in result.stdout


def test_no_modules_import_each_other_in_a_cycle() -> None:
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("pykvm", "devices", "pyvmm", "pyvmm_native", "guest_images", "bench")
    imported = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    assert list(graphlib.TopologicalSorter(imported).static_order())


def test_a_cycle_is_found() -> None:
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


def test_few_modules_at_the_root_of_pyvmm() -> None:
    modules = {path.stem for path in (ROOT / "pyvmm").glob("*.py")}
    assert modules <= AT_ROOT


@pytest.mark.parametrize("package", ["pykvm", "devices", "pyvmm", "guest_images", "bench"])
def test_rooms_are_named_by_their_job_and_say_what_belongs_there(package: str) -> None:
    for init in files(package):
        if init.name == "__init__.py":
            assert init.parent.name not in NO_ROOMS
            assert ast.get_docstring(ast.parse(init.read_text())), name_of(init)


def deferred_imports(source: str) -> Iterator[int]:
    """Yield the line of each group of imports inside a function that names no cost.

    A comment in the group's first line, or right above it, has to give the start-up cost that the
    deferred import saves, as a figure with its unit.
    """
    lines = source.splitlines()
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for block in blocks(function):
            for index, statement in enumerate(block):
                first = not index or not isinstance(block[index - 1], IMPORTS)
                if not isinstance(statement, IMPORTS) or not first:
                    continue
                if not COST.search(comment_at(lines, statement.lineno)):
                    yield statement.lineno


def blocks(function: ast.AST) -> Iterator[list[ast.stmt]]:
    """Yield each list of statements of a function, without those of functions within it."""
    for node in ast.iter_child_nodes(function):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        yield from blocks(node)
    for field in ("body", "orelse", "finalbody"):
        if isinstance(block := getattr(function, field, None), list):
            yield block


def comment_at(lines: list[str], lineno: int) -> str:
    """Return the comment at the end of a line (counted from 1) and in the lines right above it."""
    comment = lines[lineno - 1].partition("  # ")[2]
    above = lineno - 2
    while lines[above].lstrip().startswith("#"):
        comment = f"{lines[above].lstrip(' #')} {comment}"
        above -= 1
    return comment


def test_a_deferred_import_names_the_cost_it_saves() -> None:
    offences = [
        f"{name_of(path)}:{line}"
        for path in files(*PRODUCT)
        for line in deferred_imports(path.read_text())
    ]
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize(
    ("body", "offends"),
    [
        ("import a", True),
        ("import a  # saves 3 ms", False),
        ("import a  # saves time", True),
        ("# The import of a takes 3.5 ms,\n    # which --help does not need.\n    import a", False),
        ("import a  # 40 modules\n    import b", False),
        ("import a  # 3 ms\n    f()\n    import b", True),
        ("if x:\n        import a", True),
        ("try:\n        import a  # 1 MiB\n    except ImportError:\n        pass", False),
    ],
)
def test_the_rule_for_deferred_imports(body: str, offends: bool) -> None:
    assert bool(list(deferred_imports(f"def f():\n    {body}\n"))) == offends
    assert not list(deferred_imports("import a\n"))


@pytest.mark.parametrize(
    ("package", "others"),
    [
        ("pykvm", "pyvmm devices pyvmm_native guest_images click rich"),
        ("pyvmm_native.runs", "pyvmm devices pykvm guest_images click rich"),
        ("devices.balloon.device", "pyvmm pykvm guest_images click rich"),
        ("devices.virtio.pci_transport", "pyvmm pykvm guest_images click rich"),
    ],
)
def test_a_package_loads_without_the_others(package: str, others: str) -> None:
    program = (
        f"import sys\nimport {package}\n"
        f"taken = [name for name in {others.split()} if name in sys.modules]\n"
        "sys.exit(' '.join(taken) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


STUDENTS_FILES = ("exercise.py", "solution.py")
"""Files of `pyvmm.learn` that stand alone: a solution is its exercise without the bug."""


def test_no_two_public_classes_share_a_name() -> None:
    places: dict[str, list[str]] = {}
    for path in files(*PRODUCT, "bench"):
        if path.name in STUDENTS_FILES:
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(name_of(path))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_each_file_of_tests_has_a_name_of_its_own() -> None:
    names = [path.name for path in files("tests") if path.name.startswith("test_")]
    assert {name for name in names if names.count(name) > 1} == set()  # pytest stops otherwise
