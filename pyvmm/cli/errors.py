# SPDX-License-Identifier: Apache-2.0
"""Errors that only the command line raises."""

from __future__ import annotations

from pyvmm.errors import UserError

MORE_DESCRIPTORS = "raise the limit, for example: ulimit -n 256"
"""The remedy of too many open files."""


class CommandError(UserError):
    """Options that do not go together, or a command that cannot be completed; has its remedy."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


class RequestFailed(UserError):
    """The process of a guest has refused a request of `command`, or could not fulfil it."""

    def __init__(self, message: str, command: str) -> None:
        super().__init__(f"the request failed: {message}")
        self.reported = message
        self.command = command
