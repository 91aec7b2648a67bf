# SPDX-License-Identifier: Apache-2.0
"""The reason why a VM has ended, and the exit status of `pyvmm run` for it."""

# No postponed annotations: a named tuple compiles each type from its text, at every start.

from enum import Enum
from typing import NamedTuple


class ExitReason(Enum):
    """The reason why a VM has ended; the value is `reason` in QMP's SHUTDOWN event."""

    POWEROFF = "guest-shutdown"
    RESET = "guest-reset"
    PANIC = "guest-panic"
    CRASH = "host-error"
    QUIT = "host-qmp-quit"
    ESCAPE = "host-ui"
    SIGNAL = "host-signal"


PANICKED = "the guest kernel panicked"
"""Description of a panic."""


class ExitResult(NamedTuple):
    """The `reason` and, for a crash or a panic, a description, `detail`."""

    reason: ExitReason
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason.value} {self.detail}".rstrip()

    @property
    def by_guest(self) -> bool:
        """True if the guest ended the VM: `guest` in QMP's SHUTDOWN event."""
        return self.reason in (ExitReason.POWEROFF, ExitReason.RESET, ExitReason.PANIC)

    @property
    def exit_status(self) -> int:
        """0 unless the guest crashed."""
        return 1 if self.reason in (ExitReason.PANIC, ExitReason.CRASH) else 0
