# SPDX-License-Identifier: Apache-2.0
"""Failures to announce a guest or to find one."""

from __future__ import annotations

from collections.abc import Sequence

from pyvmm.errors import UserError


class RuntimeDirectoryUnusable(UserError):
    """The runtime directory cannot be created, or others could change what is in it."""


class InvalidGuestName(UserError):
    """No guest can have this name."""


class GuestNameInUse(UserError):
    """A running guest of this user has the name."""


class NoSuchGuest(UserError):
    """No running guest of this user has the name; `running` are those that there are."""

    def __init__(self, message: str, running: Sequence[str]) -> None:
        super().__init__(message)
        self.running = running
