# SPDX-License-Identifier: Apache-2.0
"""The VM as the control socket sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from devices.ports import GuestRam
    from devices.virtio.pci_transport import VirtioPciTransport
    from pyvmm.balloon.free_page_hints import FreePageHints
    from pyvmm.balloon.misc_requests import MiscRequests
    from pyvmm.balloon.statistics import BalloonStatistics
    from pyvmm.machine.counters import MachineCounters
    from pyvmm.machine.run_state import EventSink, RunState
    from pyvmm.machine.step import EventStep
    from pyvmm.memory.huge_page_pool import MemoryBacking
    from pyvmm.memory.page_states import PageStates
    from pyvmm.migration.outgoing import Migrations
    from pyvmm.snapshot.saver import Snapshots
    from pyvmm.trace.watch import EventWatch
    from pyvmm_native.runs import PageRuns


class VmControl(Protocol):
    """One running VM, for the commands of the control socket.

    Threads: event loop.
    """

    @property
    def ram_bytes(self) -> int:
        """Return the size of the guest's RAM."""

    @property
    def ram_pages(self) -> PageRuns:
        """Return the pages of that RAM, by guest-physical address."""

    @property
    def ram(self) -> GuestRam:
        """Return that RAM."""

    @property
    def event_watch(self) -> EventWatch:
        """Return the events, for one client at a time."""

    @property
    def step(self) -> EventStep:
        """Return what stops the guest at an event, for a client that watches."""

    def leave_paused(self) -> None:
        """Keep the paused VM paused, even if it was stopped at an event."""

    def traced_devices(self) -> Mapping[str, Sequence[str]]:
        """Return the names of the queues of each device that emits events, by its name."""

    async def page_states(self, pages_per_cell: int) -> PageStates:
        """Count the pages of each cell of RAM by state."""

    def pci_registers(self, device: str) -> dict[str, Any]:
        """Return the registers of a PCI device, as JSON; KeyError if there is none of that name."""

    @property
    def memory_backing(self) -> MemoryBacking:
        """Return the memory of the host behind that RAM."""

    @property
    def vcpu_thread_ids(self) -> Sequence[int]:
        """Return the thread id of each vCPU, in the order of their numbers."""

    @property
    def counters(self) -> MachineCounters:
        """Return the counts of exits and requests since the VM was created."""

    def locked_devices(self) -> AbstractContextManager[Mapping[str, VirtioPciTransport]]:
        """Return the virtio devices by name, with the device lock held in the `with` block."""

    @property
    def balloon_actual_bytes(self) -> int:
        """Return the RAM that the guest can use: `ram_bytes` less the size of its balloon."""

    @property
    def balloon_kept_bytes(self) -> int:
        """Return the bytes in the balloon that the host keeps, as parts of larger host pages."""

    @property
    def balloon_statistics(self) -> BalloonStatistics:
        """Return the memory statistics that the guest reports."""

    @property
    def misc_requests(self) -> MiscRequests:
        """Return the requests of the misc queue: unused pages, dropping caches, syncing."""

    @property
    def free_page_hints(self) -> FreePageHints:
        """Return the requests for free page hints."""

    @property
    def snapshots(self) -> Snapshots:
        """Return the VM's snapshots: the last or current one, and the start of the next."""

    @property
    def migrations(self) -> Migrations:
        """Return the VM's migrations: the last or current one, and the start of the next."""

    @property
    def status(self) -> RunState:
        """Return the state of the VM, as named by QMP's RunState."""

    @property
    def balloon_target_bytes(self) -> int:
        """Return the RAM that the requested size of the balloon leaves to the guest."""

    @property
    def balloon_driver_runs(self) -> bool:
        """Return whether a driver in the guest runs the balloon."""

    def set_balloon_target(self, target_bytes: int) -> None:
        """Resize the balloon to leave `target_bytes` of RAM, 0 < `target_bytes` <= `ram_bytes`."""

    def pause(self) -> None:
        """Stop the vCPUs of a running VM and announce STOP."""

    def resume(self) -> None:
        """Resume the vCPUs of a paused VM and announce RESUME."""

    def quit(self) -> None:
        """Start to end the VM, which announces SHUTDOWN; return at once."""

    def subscribe(self, sink: EventSink) -> None:
        """Call `sink` with every event from now on."""
