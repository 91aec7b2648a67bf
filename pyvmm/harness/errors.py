# SPDX-License-Identifier: Apache-2.0
"""Errors that a script gets from its guest."""

from __future__ import annotations

from pyvmm.harness.completed_command import CompletedCommand


class GuestExited(Exception):
    """The guest ended before the script expected it to."""


class CommandFailed(Exception):
    """A command's status is not 0, or the guest's `pattern` program reported an error.

    `result` has all about a command that the guest agent ran.
    """

    def __init__(self, message: str, result: CompletedCommand | None = None) -> None:
        super().__init__(message)
        self.result = result


class CommandTimeout(TimeoutError):
    """A command was killed because its time was up; `stdout` and `stderr` are its output so far."""

    def __init__(self, message: str, stdout: str, stderr: str) -> None:
        super().__init__(message)
        self.stdout = stdout
        self.stderr = stderr


class OutputTooLong(Exception):
    """A command was killed because it has written more than a script may receive."""


class SnapshotFailed(Exception):
    """The guest was not saved; the message is the reason."""


class ConsoleTimeout(Exception):
    """The expected output did not appear in time; the message ends with the last output seen."""
