# SPDX-License-Identifier: Apache-2.0
"""Reasons why a command does not run in a guest."""

from __future__ import annotations

from pyvmm.errors import UserError


class AgentFailed(UserError):
    """The guest agent does not run, or does not keep to the protocol."""


class CommandUnusable(UserError):
    """No guest can run such a command."""


class CommandNotStarted(UserError):
    """The guest could not start the command; `status` is what env(1) would exit with."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class WorkingDirectoryUnusable(CommandNotStarted):
    """The guest does not have the command's working directory, or cannot enter it."""


class OutputIncomplete(UserError):
    """The guest has reported more output than has arrived."""
