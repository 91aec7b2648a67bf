# SPDX-License-Identifier: Apache-2.0
"""How a machine's life ended, and which exit status that is."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class ExitReason(Enum):
    """Why the machine stopped; the value is QMP's reason in the SHUTDOWN event."""

    POWEROFF = "guest-shutdown"
    RESET = "guest-reset"
    PANIC = "guest-panic"
    CRASH = "host-error"
    QUIT = "host-qmp-quit"
    ESCAPE = "host-ui"
    SIGNAL = "host-signal"


class ExitResult(NamedTuple):
    """An ending and, for those that are somebody's fault, what happened in words."""

    ending: ExitReason
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.ending.value} {self.detail}".rstrip()

    @property
    def by_guest(self) -> bool:
        """Whether the guest ended it, in QMP's sense of the word."""
        return self.ending in (ExitReason.POWEROFF, ExitReason.RESET, ExitReason.PANIC)

    @property
    def exit_status(self) -> int:
        """0 unless the guest crashed."""
        return 1 if self.ending in (ExitReason.PANIC, ExitReason.CRASH) else 0
