# SPDX-License-Identifier: Apache-2.0
"""A test run that is cut off goes on where it was, and several share their files."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

SUITE = """
import os
import pytest

@pytest.fixture
def breaks_afterwards():
    yield
    assert "MENDED" in os.environ

def test_passes(): pass
def test_leaves_a_mess(breaks_afterwards): pass
def test_fails(): assert "MENDED" in os.environ
def test_cuts_the_run_off():
    if "MENDED" not in os.environ:
        os._exit(99)
def test_comes_later(): pass
"""


def passed(directory: Path) -> str:
    return "".join(note.read_text() for note in directory.glob("record/*.passed"))


def run(directory: Path, **env: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pytest", "-p", "tests.resume", "--resume", "record"]
    argv += ["-p", "no:cacheprovider", "--rootdir", ".", "-q", "-rA", "."]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(
        argv, cwd=directory, env=env, capture_output=True, text=True, timeout=60, check=False
    )


def test_only_what_has_not_passed_is_run_again(tmp_path: Path) -> None:
    (tmp_path / "test_suite.py").write_text(SUITE)
    (tmp_path / "record").mkdir()
    assert run(tmp_path).returncode == 99
    assert passed(tmp_path) == "test_suite.py::test_passes\n"
    (tmp_path / "record/test_suite.py.taken").unlink()
    again = run(tmp_path, MENDED="1")
    assert again.returncode == 0
    assert "4 passed, 1 deselected" in again.stdout
    nothing_left = run(tmp_path)
    assert nothing_left.returncode == 0
    assert "5 deselected" in nothing_left.stdout


def test_who_comes_first_takes_the_file(tmp_path: Path) -> None:
    for name in ("test_a.py", "test_b.py", "test_c.py"):
        (tmp_path / name).write_text("def test_one(): pass\ndef test_two(): pass\n")
    (tmp_path / "record").mkdir()
    (tmp_path / "record/test_b.py.taken").touch()
    first = run(tmp_path)
    assert first.returncode == 0
    assert "4 passed" in first.stdout
    assert "test_b.py" not in passed(tmp_path)
    (tmp_path / "record/test_b.py.taken").unlink()
    assert "2 passed, 4 deselected" in run(tmp_path).stdout
