# SPDX-License-Identifier: Apache-2.0
"""A VM without a guest or KVM, for tests of its clients.

Its balloon is resized step by step on the event loop, as a driver does it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from devices.balloon.device import BalloonDevice
from devices.testing.balloon.hinting import HintGuest
from devices.testing.balloon.misc import MiscGuest
from devices.testing.balloon.stats import StatsGuest
from devices.testing.ram import AnonymousRam
from devices.virtio.pci_transport import VirtioPciTransport
from pyvmm.balloon.free_page_hints import FreePageHints
from pyvmm.balloon.guest_requests import GuestAccess
from pyvmm.balloon.misc_requests import MiscRequests
from pyvmm.balloon.statistics import BalloonStatistics
from pyvmm.balloon.unused_pages import query_unused_pages
from pyvmm.config import MachineConfig
from pyvmm.machine.counters import EXIT_REASONS, MachineCounters, QueueCounts
from pyvmm.machine.pci_registers import pci_registers
from pyvmm.machine.run_state import EventName, EventSink, RunState
from pyvmm.machine.step import EventStep
from pyvmm.machine.vcpu_thread import VcpuGate
from pyvmm.memory import layout
from pyvmm.memory.huge_page_pool import MemoryBacking
from pyvmm.memory.page_states import KnownPages, PageStates, page_states
from pyvmm.memory.precopy import UnusedPages
from pyvmm.migration.outgoing import Migrations
from pyvmm.qmp.server import ControlServer, Listener
from pyvmm.snapshot.saver import Snapshots
from pyvmm.state.records import Record
from pyvmm.trace.tracer import EventTracer
from pyvmm.trace.watch import EventWatch
from pyvmm.units import GIB, MIB
from pyvmm_native.runs import PageRuns


class SteppedHardware:
    """Satisfies `SteppedMachine`; vCPUs are threads that pass through `gate`."""

    def __init__(self) -> None:
        self.gate = VcpuGate()
        self.devices_held = False
        self.caught = True

    @property
    def held(self) -> bool:
        return self.gate.held

    def hold(self) -> None:
        self.gate.set_held(True)

    def hold_devices(self) -> None:
        self.devices_held = True

    def release(self) -> None:
        self.devices_held = False
        self.gate.set_held(False)

    def catch_notifications(self, caught: bool) -> None:
        self.caught = caught


class InMemoryVm:
    """Satisfies `VmControl`; its driver finds no more memory below `stuck_at_bytes`."""

    def __init__(
        self, ram_bytes: int = GIB, step_bytes: int = 64 * MIB, stuck_at_bytes: int = 0
    ) -> None:
        self.ram_bytes = ram_bytes
        self.balloon_actual_bytes = ram_bytes
        self.balloon_kept_bytes = 36864
        self.status: RunState = "running"
        self.vcpu_thread_ids = [threading.get_native_id()]
        self.targets: list[int] = []
        self.balloon_driver_runs = True
        exits = dict(zip(EXIT_REASONS, (4180, 512, 96, 7, 3), strict=True))
        queues = [QueueCounts("balloon", "inflate", 192, 24), QueueCounts("rng", "request", 8, 8)]
        self.counters = MachineCounters(64 * MIB, exits, queues)
        self.memory_backing = MemoryBacking("hugetlbfs", 2 * MIB, 8 * MIB, 512 * MIB)
        self.on_quit: Callable[[], object] = lambda: None
        self._goal_bytes = ram_bytes
        self._step_bytes = step_bytes
        self._stuck_at_bytes = stuck_at_bytes
        self._sinks: list[EventSink] = []
        self.stats_guest = StatsGuest()
        self.throttled: list[int] = []
        """All throttle percentages that were set, in order."""
        self.written = PageRuns()
        """Pages that the dirty log reports as written."""

    @cached_property
    def balloon_statistics(self) -> BalloonStatistics:
        """Return the statistics of `stats_guest`, which responds at once unless it is paused."""
        loop, board = asyncio.get_running_loop(), self.stats_guest.board
        stats = BalloonStatistics(self._access(board.balloon))
        board.msi.on_trigger = lambda vector: loop.call_soon(self._respond)
        self.stats_guest.start()
        return stats

    @cached_property
    def misc_guest(self) -> MiscGuest:
        """Return the guest of the misc queue, which responds at once unless it is paused."""
        return MiscGuest(*layout.ram_ranges(self.ram_bytes)).start()

    @cached_property
    def ram_pages(self) -> PageRuns:
        return self.misc_guest.board.ram.pages

    @cached_property
    def misc_requests(self) -> MiscRequests:
        loop, board = asyncio.get_running_loop(), self.misc_guest.board
        board.msi.on_trigger = lambda vector: loop.call_soon(self._respond)
        return MiscRequests(self._access(board.balloon))

    @cached_property
    def hint_guest(self) -> HintGuest:
        """Return the guest that gives free page hints, at once unless it is paused."""
        return HintGuest(*layout.ram_ranges(self.ram_bytes))

    @cached_property
    def free_page_hints(self) -> FreePageHints:
        loop, board = asyncio.get_running_loop(), self.hint_guest.board
        board.msi.on_trigger = lambda vector: loop.call_soon(self._respond)
        return FreePageHints(self._access(board.balloon))

    def _access(self, balloon: BalloonDevice) -> GuestAccess:
        return GuestAccess(balloon, threading.Lock(), self._soon, lambda: self.status == "paused")

    # --- For snapshots and migrations ----------------------------------------------------------
    @property
    def config(self) -> MachineConfig:
        return MachineConfig(Path("/kernel"), None, "quiet", self.ram_bytes, 1, "bitmap")

    @property
    def ram(self) -> AnonymousRam:
        return self.misc_guest.board.ram

    @property
    def balloon(self) -> BalloonDevice:
        return self.misc_guest.board.balloon

    @contextmanager
    def locked_devices(self) -> Iterator[Mapping[str, VirtioPciTransport]]:
        yield {"balloon": self.misc_guest.board.transport}

    @cached_property
    def snapshots(self) -> Snapshots:
        return Snapshots(self)

    @cached_property
    def migrations(self) -> Migrations:
        return Migrations(self)

    @cached_property
    def tracer(self) -> EventTracer:
        return EventTracer()

    @cached_property
    def event_watch(self) -> EventWatch:
        return EventWatch(self.tracer)

    @cached_property
    def hardware(self) -> SteppedHardware:
        """Return the hardware that `step` holds."""
        return SteppedHardware()

    @cached_property
    def step(self) -> EventStep:
        return EventStep(self, self.hardware, self.tracer, self.event_watch)

    def leave_paused(self) -> None:
        if "step" in self.__dict__:
            self.step.leave_paused()

    def traced_devices(self) -> Mapping[str, Sequence[str]]:
        return {"uart": [], "balloon": ["inflate", "deflate"], "rng": ["request"]}

    async def page_states(self, pages_per_cell: int) -> PageStates:
        known = KnownPages(self.balloon.pages_inside(), self.misc_requests.last_unused)
        ram = self.ram
        rows = page_states(ram.memory, ram.pages, [], known, pages_per_cell)
        return PageStates(rows, self.balloon.actual)

    def pci_registers(self, device: str) -> dict[str, Any]:
        return pci_registers({"balloon": self.misc_guest.board.transport}[device])

    @property
    def saving(self) -> bool:
        return "snapshots" in self.__dict__ and self.snapshots.active

    @property
    def migrating(self) -> bool:
        return "migrations" in self.__dict__ and self.migrations.active

    async def memory_loaded(self) -> None:
        pass

    async def unused_pages(self, timeout_s: float) -> UnusedPages:
        return await query_unused_pages(
            self.balloon, self.misc_requests, self.free_page_hints, timeout_s
        )

    @contextmanager
    def log_dirty_pages(self) -> Iterator[InMemoryVm]:
        yield self

    def collect(self) -> PageRuns:
        return self.written

    def clear(self, start_pfn: int, pages: int) -> None:
        """Keep `written`, as a guest that writes the pages again at once."""

    def throttle(self, percentage: int) -> None:
        self.throttled.append(percentage)

    @contextmanager
    def quiescent(self) -> Iterator[None]:
        assert self.status in ("paused", "finish-migrate")
        yield

    def prepare_parts(self) -> None:
        pass

    def save_parts(self) -> Sequence[Record]:
        return []

    def _soon(self, callback: Callable[..., None], *args: object) -> None:
        asyncio.get_running_loop().call_soon(callback, *args)

    def _respond(self) -> None:
        if self.status == "running":
            self.stats_guest.respond()
            if "hint_guest" in self.__dict__:
                self.hint_guest.respond()
            if "misc_guest" in self.__dict__:
                self.misc_guest.respond()

    @property
    def balloon_target_bytes(self) -> int:
        return self._goal_bytes

    def set_balloon_target(self, target_bytes: int) -> None:
        self.targets.append(target_bytes)
        pages = (self.ram_bytes - target_bytes) // 4096
        self._goal_bytes = self.ram_bytes - pages * 4096
        if self._step_bytes:
            asyncio.get_running_loop().call_soon(self._step)

    def _step(self) -> None:
        goal_bytes = max(self._goal_bytes, self._stuck_at_bytes)
        way_bytes = goal_bytes - self.balloon_actual_bytes
        if way_bytes == 0:
            return
        self.balloon_actual_bytes += max(-self._step_bytes, min(self._step_bytes, way_bytes))
        self.announce("BALLOON_CHANGE", actual=self.balloon_actual_bytes)
        asyncio.get_running_loop().call_soon(self._step)

    def pause(self) -> None:
        assert self.status == "running"
        self.status = "paused"
        self.announce("STOP")

    def set_status(self, status: RunState) -> None:
        assert self.status != "running"
        self.status = status

    def resume(self) -> None:
        assert self.status in ("paused", "finish-migrate")
        self.status = "running"
        if "hardware" in self.__dict__:
            self.hardware.release()
        self.announce("RESUME")
        self._respond()

    def quit(self) -> None:
        self.status = "shutdown"
        if "misc_requests" in self.__dict__:
            self.misc_requests.close()
        if "free_page_hints" in self.__dict__:
            self.free_page_hints.close()
        self.announce("SHUTDOWN", guest=False, reason="host-qmp-quit")
        self.on_quit()

    def subscribe(self, sink: EventSink) -> None:
        self._sinks.append(sink)

    def announce(
        self, name: EventName, data: Mapping[str, object] = MappingProxyType({}), **more: object
    ) -> None:
        for sink in self._sinks:
            sink(name, {**data, **more})


@contextmanager
def served_in_thread(vm: InMemoryVm, path: Path | Listener) -> Iterator[None]:
    """Serve `vm` at `path`, or a listener, in a thread until the block ends or the VM quits."""
    started = threading.Event()
    loop = asyncio.new_event_loop()
    end = asyncio.Event()

    async def serve() -> None:
        server = ControlServer(vm, path)
        await server.start()
        vm.on_quit = end.set
        started.set()
        await end.wait()
        await server.close()
        if "migrations" in vm.__dict__:
            await vm.migrations.end()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(10)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(10)
        loop.close()
    assert not thread.is_alive()
