# SPDX-License-Identifier: Apache-2.0
"""The interface of a running guest for snapshots and migrations.

Both copy memory while the guest runs, then pause the guest, keep its devices from accessing memory,
and save its state. They need only this Protocol of a machine, so both are tested without KVM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from devices.ports import GuestRam
    from pyvmm.config import MachineConfig
    from pyvmm.machine.run_state import EventName, RunState
    from pyvmm.memory.dirty_log import DirtyLog
    from pyvmm.memory.precopy import UnusedPages
    from pyvmm.state.records import Record


class GuestMachine(Protocol):
    """A machine whose guest is saved or migrated.

    Threads: event loop; `log_dirty_pages` also migration.
    """

    @property
    def config(self) -> MachineConfig:
        """The configuration of the machine."""

    @property
    def ram(self) -> GuestRam:
        """Guest memory."""

    @property
    def balloon_actual_bytes(self) -> int:
        """The RAM of the guest in bytes, without the pages in its balloon."""

    @property
    def status(self) -> RunState:
        """The state of the guest: running, or the reason why it is not."""

    @property
    def saving(self) -> bool:
        """True while a snapshot is taken, which may pause the guest."""

    @property
    def migrating(self) -> bool:
        """True while the guest is sent to another host."""

    async def memory_loaded(self) -> None:
        """Wait until all of memory is loaded, if it is being loaded from a snapshot."""

    def prepare_parts(self) -> None:
        """Prepare for `save_parts`, which is slow; UserError if the state cannot be saved."""

    def log_dirty_pages(self) -> AbstractContextManager[DirtyLog]:
        """Return a context manager that logs all changes to memory."""

    async def unused_pages(self, timeout_s: float) -> UnusedPages:
        """Query the pages that the guest does not use; a time-out of 0 disables the query.

        The dirty log must be on: the guest may use the pages again at once.
        """

    def throttle(self, percentage: int) -> None:
        """Keep the vCPUs out of the guest for this percentage of their time; 0 ends that."""

    def pause(self) -> None:
        """Stop the vCPUs of a running guest and announce STOP."""

    def quiescent(self) -> AbstractContextManager[None]:
        """Return a context manager that keeps devices from accessing the paused guest's memory."""

    def save_parts(self) -> Sequence[Record]:
        """Save everything but memory; the guest is paused."""

    def set_status(self, status: RunState) -> None:
        """Set the run state of the paused guest."""

    def resume(self) -> None:
        """Let the vCPUs of a paused guest run and announce RESUME."""

    def announce(self, name: EventName, data: Mapping[str, object]) -> None:
        """Send an event to all listeners."""
