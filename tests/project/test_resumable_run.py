# SPDX-License-Identifier: Apache-2.0
"""Interrupted test runs are resumed, and concurrent ones share the test files."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

SUITE = """
import os
import pytest

@pytest.fixture
def fails_at_teardown():
    yield
    assert "FIXED" in os.environ

def test_passes(): pass
def test_fails_at_teardown(fails_at_teardown): pass
def test_fails(): assert "FIXED" in os.environ
def test_interrupts_the_run():
    if "FIXED" not in os.environ:
        os._exit(99)
def test_runs_later(): pass
"""


def passed(directory: Path) -> str:
    return "".join(file.read_text() for file in directory.glob("record/*.passed"))


def run(directory: Path, **env: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pytest", "-p", "tests.resumable_run", "--resume", "record"]
    argv += ["-p", "no:cacheprovider", "--rootdir", ".", "-q", "-rA", "."]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(
        argv, cwd=directory, env=env, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_resumed_run_skips_tests_that_have_passed(tmp_path: Path) -> None:
    (tmp_path / "test_suite.py").write_text(SUITE)
    (tmp_path / "record").mkdir()
    assert run(tmp_path).returncode == 99
    assert passed(tmp_path) == "test_suite.py::test_passes\n"
    (tmp_path / "record/test_suite.py.claimed").unlink()
    again = run(tmp_path, FIXED="1")
    assert again.returncode == 0
    assert "4 passed, 1 deselected" in again.stdout
    nothing_left = run(tmp_path)
    assert nothing_left.returncode == 0
    assert "5 deselected" in nothing_left.stdout


def test_a_claimed_file_is_skipped(tmp_path: Path) -> None:
    for name in ("test_a.py", "test_b.py", "test_c.py"):
        (tmp_path / name).write_text("def test_one(): pass\ndef test_two(): pass\n")
    (tmp_path / "record").mkdir()
    (tmp_path / "record/test_b.py.claimed").touch()
    first = run(tmp_path)
    assert first.returncode == 0
    assert "4 passed" in first.stdout
    assert "test_b.py" not in passed(tmp_path)
    (tmp_path / "record/test_b.py.claimed").unlink()
    assert "2 passed, 4 deselected" in run(tmp_path).stdout
