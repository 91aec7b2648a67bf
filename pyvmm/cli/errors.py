# SPDX-License-Identifier: Apache-2.0
"""Errors that only the command line raises; they carry their own remedy."""

from __future__ import annotations

from pyvmm.errors import UserError


class CommandError(UserError):
    """Options that do not go together, or a command that cannot be completed."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy
