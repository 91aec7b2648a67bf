# SPDX-License-Identifier: Apache-2.0
"""Run a chapter's check on a student's file, in a process of its own with a deadline.

Whatever the file does (loop, exit, print without end, start processes), there is one outcome. All
processes of its group are killed at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, NamedTuple

from pyvmm.blocking.process_limit import process_limit_reported
from pyvmm.learn.chapter import Chapter
from pyvmm.learn.errors import ExerciseUnusable

CHECK_TIMEOUT_S = 30.0
"""Longest time that the check of a file may take; those of correct files take below a second."""
MAX_FILE_BYTES = 1 << 20
"""Largest file that is checked."""
SHOWN_OUTPUT_BYTES = 2048
"""Most bytes of the file's output that an outcome has: the last ones."""


class CheckOutcome(NamedTuple):
    """The end of a check: `message` explains why it has not `passed`.

    `output` is the end of what the file has printed.
    """

    passed: bool
    message: str
    output: str


def check_file(chapter: Chapter, path: Path, timeout_s: float = CHECK_TIMEOUT_S) -> CheckOutcome:
    """Run the check of `chapter` on the file at `path`. Raises `ExerciseUnusable`."""
    check_readable(path)
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as result:
        status = _run(chapter, path, timeout_s, output, result)
        printed = _read(output)[-SHOWN_OUTPUT_BYTES:].decode(errors="replace")
        passed, message = _outcome(status, _read(result), timeout_s)
    return CheckOutcome(passed, message, printed)


def check_readable(path: Path) -> None:
    """Raise `ExerciseUnusable` unless `path` is a file that can be read and is not too large."""
    try:
        if not path.is_file():
            raise ExerciseUnusable(
                f"{path} is not a file" if path.exists() else f"{path} does not exist"
            )
        with path.open("rb") as file:
            if len(file.read(MAX_FILE_BYTES + 1)) > MAX_FILE_BYTES:
                raise ExerciseUnusable(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB")
    except OSError as error:
        raise ExerciseUnusable(f"{path} cannot be read: {error.strerror}") from error


def _run(
    chapter: Chapter, path: Path, timeout_s: float, output: IO[bytes], result: IO[bytes]
) -> int | None:
    """Return the exit status of the process, negative for a signal; None after the deadline."""
    module = "pyvmm.learn.check_process"
    with process_limit_reported():
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(chapter.number), str(path), str(result.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[result.fileno()],
            start_new_session=True,
        )
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):  # all have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _outcome(status: int | None, result: bytes, timeout_s: float) -> tuple[bool, str]:
    """Return whether the check has passed, and the message."""
    if status is None:
        return False, (
            f"The file has not finished within {timeout_s:.0f} s: does a loop wait for"
            " something that never happens?"
        )
    try:
        outcome = json.loads(result)
        return bool(outcome["passed"]), str(outcome["message"])
    except (ValueError, KeyError, TypeError):
        end = f"with status {status}" if status >= 0 else f"by signal {-status}"
        return False, f"The process of the file has ended {end} before the check did."
