# SPDX-License-Identifier: Apache-2.0
"""A file that cannot be checked has one clear message, whatever it does."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pyvmm.learn.chapter import load_chapters
from pyvmm.learn.errors import ExerciseUnusable
from pyvmm.learn.file_check import MAX_FILE_BYTES, SHOWN_OUTPUT_BYTES, CheckOutcome, check_file
from tests.project.sources import ROOT

CHAPTER = load_chapters()[6]
SOLUTION = (ROOT / "pyvmm/learn/chapter_06/solution.py").read_text()
METHOD = "        before, self.decided_at"
"""First statement of `should_interrupt`."""


def check_text(tmp_path: Path, text: str, timeout_s: float = 20.0) -> CheckOutcome:
    path = tmp_path / "chapter_06.py"
    path.write_text(text)
    return check_file(CHAPTER, path, timeout_s)


def with_statement(statement: str) -> str:
    """Return the solution with `statement` before the first of `should_interrupt`."""
    assert METHOD in SOLUTION
    return SOLUTION.replace(METHOD, f"        {statement}\n{METHOD}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:\n", "The file is not valid Python: line 1: invalid syntax."),
        ("x = 1\x00\n", "The file raises an exception: SyntaxError"),
        ("", "The file does not define `UsedNotifications`, which the check uses."),
        ("1 / 0\n", "The file raises an exception in line 1: ZeroDivisionError: division by zero"),
        ("raise ValueError('x' * 9999999)\n", "in line 1: ValueError: xxx"),
        ("class A:\n    x: B\n", "in line 2 (A): NameError"),
        (
            "UsedNotifications = None\n",
            "cannot use a value that the file has returned or set: TypeError: 'NoneType'",
        ),
        ("import nowhere\n", "ModuleNotFoundError: No module named 'nowhere'"),
        ("raise SystemExit(0)\n", "The file ends the program in line 1 instead of returning."),
        ("import os; os._exit(0)\n", "ended with status 0 before the check did"),
        ("import os; os.abort()\n", "ended by signal 6 before the check did"),
        ("x = bytes(1 << 40)\n", "The file needs more than 2 GiB of memory in line 1."),
        ("while True: print('x' * 9999)\n", "The file prints more than 1 MiB in line 1."),
        ("def f(): f()\nf()\n", "in line 1 (f): RecursionError"),
        (with_statement("raise KeyError(3)"), "(should_interrupt): KeyError: 3"),
        (with_statement("quit()"), "(should_interrupt) instead of returning."),
    ],
)
def test_a_broken_file_has_one_clear_message(tmp_path: Path, text: str, message: str) -> None:
    outcome = check_text(tmp_path, text)
    assert not outcome.passed
    assert message in outcome.message
    assert "Traceback" not in outcome.message + outcome.output


def test_a_loop_without_end_is_ended_with_all_its_processes(tmp_path: Path) -> None:
    text = (
        "import subprocess\n"
        "print(subprocess.Popen(['sleep', '999']).pid, flush=True)\n"
        "while True: pass\n"
    )
    outcome = check_text(tmp_path, text, timeout_s=3.0)
    assert outcome.message.startswith("The file has not finished within 3 s")
    deadline = time.monotonic() + 10
    while is_running(int(outcome.output)):  # it ends a moment after it was sent the signal
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Return whether the process `pid` has not ended; a zombie has (proc_pid_stat(5))."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def test_a_correct_file_may_print_and_leave_threads(tmp_path: Path) -> None:
    thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()\n"
    outcome = check_text(tmp_path, SOLUTION + thread + "print('a' * 5000 + 'end')\n")
    assert outcome.passed, outcome.message
    assert outcome.output.endswith("aaaend\n")
    assert len(outcome.output) <= SHOWN_OUTPUT_BYTES


def test_a_file_that_cannot_be_read_is_an_error_of_the_user(tmp_path: Path) -> None:
    large = tmp_path / "large.py"
    large.write_bytes(bytes(MAX_FILE_BYTES + 1))
    for path, fact in ((tmp_path / "no.py", "does not exist"), (tmp_path, "is not a file")):
        with pytest.raises(ExerciseUnusable, match=fact):
            check_file(CHAPTER, path)
    with pytest.raises(ExerciseUnusable, match="is larger than 1 MiB"):
        check_file(CHAPTER, large)
