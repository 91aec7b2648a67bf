# SPDX-License-Identifier: Apache-2.0
"""A running guest as snapshots and migrations see it.

Both copy memory while the guest runs, then pause the guest, keep its devices from touching memory,
and save its state. This Protocol is all they need of a machine, so both are tested without KVM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from devices.ports import GuestRam
    from pyvmm.config import MachineConfig
    from pyvmm.machine.run_state import RunState
    from pyvmm.memory.dirty_log import DirtyLog
    from pyvmm.memory.precopy import UnusedPages
    from pyvmm.state.records import Record


class GuestMachine(Protocol):
    """A machine whose guest is saved or migrated.

    Threads: event loop; `log_dirty_pages` also migration.
    """

    @property
    def config(self) -> MachineConfig:
        """The configuration that the machine was made from."""

    @property
    def ram(self) -> GuestRam:
        """Guest memory."""

    @property
    def balloon_actual_bytes(self) -> int:
        """RAM the guest has now: all of it less what its balloon holds."""

    @property
    def status(self) -> RunState:
        """The state of the guest: running, or the reason why it is not."""

    async def memory_loaded(self) -> None:
        """Wait until memory is complete, if it is still being filled from a snapshot."""

    def prepare_parts(self) -> None:
        """Do beforehand what `save_parts` needs and takes long; UserError if it cannot be done."""

    def log_dirty_pages(self) -> AbstractContextManager[DirtyLog]:
        """Log all changes to memory while the returned context manager's block runs."""

    async def unused_pages(self, timeout_s: float) -> UnusedPages:
        """Ask the guest which pages it does not use; with a time-out of 0, do not ask.

        The dirty log must be on: the guest may use the pages again at once.
        """

    def throttle(self, percentage: int) -> None:
        """Keep the vCPUs out of the guest for this percentage of their time; 0 ends that."""

    def pause(self) -> None:
        """Stop the vCPUs of a running guest and announce STOP."""

    def quiescent(self) -> AbstractContextManager[None]:
        """Keep devices from touching the memory of the paused guest while the block runs."""

    def save_parts(self) -> Sequence[Record]:
        """Save everything but memory; the guest is paused."""

    def set_status(self, status: RunState) -> None:
        """Say why the paused guest does not run."""

    def resume(self) -> None:
        """Let the vCPUs of a paused guest run and announce RESUME."""

    def announce(self, name: str, data: Mapping[str, object]) -> None:
        """Send an event to all listeners."""
