# SPDX-License-Identifier: Apache-2.0
"""One running VM on an asyncio event loop: its machine and the host's operations on it.

`VirtualMachine` attaches the loop to a `Machine`, keeps the VM's run state and its events, and owns
the host's side of the balloon, the snapshots and the migrations, each of which sees only the part
of the VM that its Protocol names. A VM is created, then booted, restored from a snapshot or filled
by an incoming migration, then run to its end and closed. A machine that runs already can be made a
VM as well, so a guest need not wait for asyncio:

    platform = Platform(config, console_output=queue, tracer=LogTracer())
    vm = VirtualMachine(Machine(platform))
    vm.boot()
    result = await vm.run()
    vm.close()

Threads: everything here is called on the event loop, unless a docstring names another thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

from devices.balloon.device import BalloonDevice
from pyvmm.balloon.free_page_hints import FreePageHints
from pyvmm.balloon.guest_requests import GuestAccess
from pyvmm.balloon.misc_requests import MiscRequests
from pyvmm.balloon.statistics import BalloonStatistics
from pyvmm.boot.loader import read_boot_files
from pyvmm.errors import UserError
from pyvmm.machine.coalesced_callback import CoalescedCallback
from pyvmm.machine.exit_result import ExitReason, ExitResult
from pyvmm.machine.vcpu_thread import KICK_SIGNAL
from pyvmm.trace.tracer import EventTracer
from pyvmm_native import PAGE_BYTES

if TYPE_CHECKING:
    from devices.console.device import ConsoleDevice
    from devices.virtio.pci_transport import VirtioPciTransport
    from pyvmm.console.ports import ConsolePorts
    from pyvmm.machine.counters import MachineCounters
    from pyvmm.machine.machine import Machine
    from pyvmm.machine.run_state import EventName, EventSink, RunState
    from pyvmm.machine.step import EventStep
    from pyvmm.machine.vcpu_thread import VcpuThread
    from pyvmm.memory.dirty_log import KvmDirtyLog
    from pyvmm.memory.huge_page_pool import MemoryBacking
    from pyvmm.memory.page_states import PageStates
    from pyvmm.memory.precopy import UnusedPages
    from pyvmm.memory.ram import Ram
    from pyvmm.migration.outgoing import Migrations
    from pyvmm.snapshot.reader import SnapshotFile
    from pyvmm.snapshot.saver import Snapshots
    from pyvmm.snapshot.userfaultfd_loader import UserfaultfdLoader
    from pyvmm.state.records import Record
    from pyvmm.trace.watch import EventWatch
    from pyvmm_native.runs import PageRuns

LOADED_POLL_S = 0.01
"""Interval at which `memory_loaded` looks."""
LOADED_TIMEOUT_S = 600.0
"""Longest time for which a snapshot or a migration waits until memory is complete."""
BALLOON_UPDATE_DELAY_S = 0.02
"""Size updates are delayed by at most 20 ms: a standard driver reports its size after every MiB,
and waking the event loop for each report costs as much as the MiB does."""


class VirtualMachine:
    """The VM whose hardware is `machine`; satisfies `pyvmm.qmp.vm_control.VmControl`.

    Created on a running event loop; owns `machine`, which may have been started, or have ended.
    `on_console_room` is called on the event loop when `console_input` can take more. Raises
    ValueError for a machine without a balloon.
    """

    def __init__(
        self, machine: Machine, *, on_console_room: Callable[[], None] = lambda: None
    ) -> None:
        if "balloon" not in machine.pci_devices:
            raise ValueError("the devices of a VM must include the balloon")
        self.machine = machine
        """The hardware."""
        self.config = machine.config
        """The configuration of `machine`."""
        self._tracer = tracer = machine.tracer
        self._loop = asyncio.get_running_loop()
        self._sinks: list[EventSink] = []
        self._status: RunState = "running"
        self._finished: asyncio.Future[ExitResult] = self._loop.create_future()
        self._loader: UserfaultfdLoader | None = None
        self._snapshots: Snapshots | None = None
        self._migrations: Migrations | None = None
        self._step: EventStep | None = None
        if isinstance(tracer, EventTracer):
            tracer.exits = lambda: [thread.exits for thread in machine.vcpu_threads]
            tracer.ram_bytes = machine.config.ram_bytes
        self._follow_end()
        machine.console_room.add(partial(self._soon, on_console_room))
        balloon = machine.model("balloon")
        assert isinstance(balloon, BalloonDevice)
        self.balloon = balloon
        """The model of the balloon; use it under `machine.lock`."""
        later = partial(self._soon, self._loop.call_later, BALLOON_UPDATE_DELAY_S)
        changed = CoalescedCallback(self._balloon_changed, later)
        balloon.actual_written.add(lambda pages: changed())
        access = GuestAccess(balloon, machine.lock, self._soon, self._is_paused)
        self.balloon_statistics = BalloonStatistics(access)
        """Memory statistics of the guest."""
        self.misc_requests = MiscRequests(access)
        """Requests to a guest that uses the bitmap dialect."""
        self.free_page_hints = FreePageHints(access)
        """Hints of a guest that uses the standard dialect."""

    def _follow_end(self) -> None:
        """End with the machine, also if it has ended already."""
        machine = self.machine
        machine.exited.add(partial(self._soon, self.end))
        machine.failed.add(self.fail)
        if machine.failure is not None:
            self.fail(machine.failure)
        if machine.exit is not None:
            self.end(machine.exit)

    # --- Lifetime ---------------------------------------------------------------------------------
    def boot(self, overlay: bytes = b"") -> None:
        """Load the kernel of the configuration, with the archive `overlay` in its initramfs.

        Raises `UserError` if it cannot be booted.
        """
        self.machine.boot(read_boot_files(self.config, overlay))

    def start(self) -> None:
        """Let the vCPUs enter the guest now, unless it is paused; `run` must follow.

        Its queues and timers are served from `run` on. For a guest that should not wait for that.
        """
        paused = self._status != "running"  # an incoming guest may be paused at its source
        self.machine.start(paused=paused, on_thread=self._watch_for_loader)

    async def run(self) -> ExitResult:
        """Run the VM to its end; all vCPUs are outside the guest afterwards.

        Starts its machine unless that runs already. Raises the exception of a device model, if
        there was one: a bug in pyvmm, not in the guest.
        """
        self.machine.attach(self._loop)
        if not self.machine.started:
            self.start()
        try:
            result = await asyncio.shield(self._finished)
        finally:
            self._status = "shutdown"
            self.machine.stop()
            self.balloon_statistics.close()
            self.misc_requests.close()
            self.free_page_hints.close()
            if self._snapshots is not None:
                await self._snapshots.end()
            if self._migrations is not None:
                await self._migrations.end()
        if result.reason is ExitReason.PANIC:
            self._status = "guest-panicked"
            self.announce("GUEST_PANICKED", {"action": "poweroff"})
        self.announce("SHUTDOWN", {"guest": result.by_guest, "reason": result.reason.value})
        return result

    def end(self, result: ExitResult) -> None:
        """End the VM; only the first call has an effect."""
        if not self._finished.done():
            self._finished.set_result(result)

    @property
    def ending(self) -> asyncio.Future[ExitResult]:
        """Done when the VM begins to end; do not cancel it."""
        return self._finished

    def quit(self) -> None:
        """End the VM as QMP's `quit` does."""
        self.end(ExitResult(ExitReason.QUIT))

    def fail(self, error: BaseException) -> None:
        """Make `run` raise `error`; called on any thread."""

        def set_exception() -> None:
            if not self._finished.done():
                self._finished.set_exception(error)

        self._soon(set_exception)

    def close(self) -> None:
        """Release all resources."""
        self.machine.stop()
        if self._loader is not None:
            self._loader.stop()
        if self.config.has_console_device:
            self.ports.close()
        self.machine.close()

    def console_input(self, data: bytes) -> int:
        """Pass input to the guest's serial port; return the number of bytes accepted."""
        return self.machine.console_input(data)

    @property
    def console_device(self) -> ConsoleDevice:
        """The model of virtio-console, to be used under `machine.lock`; KeyError without one."""
        return cast("ConsoleDevice", self.machine.model("console"))

    @cached_property
    def ports(self) -> ConsolePorts:
        """The ports of the console device; KeyError without one."""
        from pyvmm.console.ports import ConsolePorts  # 9 modules, for machines with it

        return ConsolePorts(self.machine)

    # --- Run state and events ---------------------------------------------------------------------
    @property
    def status(self) -> RunState:
        """The run state of the guest."""
        return self._status

    def set_status(self, status: RunState) -> None:
        """Set the run state of the paused guest."""
        self._status = status

    @property
    def vcpu_thread_ids(self) -> list[int]:
        """The thread id of each vCPU; empty before they are started."""
        threads = self.machine.vcpu_threads
        return [thread.native_id for thread in threads if thread.native_id is not None]

    @property
    def counters(self) -> MachineCounters:
        """The counts of exits and requests since the VM was created."""
        from pyvmm.machine.counters import read_counters  # 2 modules, for their query

        return read_counters(self.machine)

    @contextmanager
    def locked_devices(self) -> Iterator[Mapping[str, VirtioPciTransport]]:
        """Yield the virtio devices by name, with the device lock held."""
        with self.machine.lock:
            yield {name: each.transport for name, each in self.machine.pci_devices.items()}

    def pause(self) -> None:
        """Stop the guest's vCPUs and announce STOP."""
        self.machine.pause()
        self._pause_ports(True)
        self._status = "paused"
        self.announce("STOP", {})

    def resume(self) -> None:
        """Let the paused guest's vCPUs run and announce RESUME."""
        self._status = "running"
        self._pause_ports(False)
        self.machine.resume()
        self.announce("RESUME", {})

    def _pause_ports(self, paused: bool) -> None:
        if self.config.has_console_device:
            self.ports.set_paused(paused)

    def subscribe(self, sink: EventSink) -> None:
        """Call `sink` with every event from now on."""
        self._sinks.append(sink)

    def announce(self, name: EventName, data: Mapping[str, object]) -> None:
        """Send an event to all sinks."""
        for sink in self._sinks:
            sink(name, data)

    # --- Memory and balloon -----------------------------------------------------------------------
    @property
    def ram(self) -> Ram:
        """Guest memory."""
        return self.machine.ram

    @property
    def memory_backing(self) -> MemoryBacking:
        """The memory of the host behind guest memory."""
        # 1 module, for its query.
        from pyvmm.memory import huge_page_pool

        return huge_page_pool.MemoryBacking(
            self.config.hugepages,
            self.ram.host_page_pages * PAGE_BYTES,
            huge_page_pool.transparent_bytes(),
            huge_page_pool.hugetlbfs_bytes(),
        )

    @property
    def ram_bytes(self) -> int:
        """The size of guest memory in bytes."""
        return self.config.ram_bytes

    @property
    def ram_pages(self) -> PageRuns:
        """The page frames of guest memory."""
        return self.machine.ram.pages

    @property
    def balloon_actual_bytes(self) -> int:
        """The RAM of the guest in bytes, without the pages in its balloon."""
        return self.config.ram_bytes - self.balloon.actual * PAGE_BYTES

    @property
    def balloon_target_bytes(self) -> int:
        """The RAM in bytes that the requested size of the balloon leaves to the guest."""
        return self.config.ram_bytes - self.balloon.num_pages * PAGE_BYTES

    @property
    def balloon_driver_runs(self) -> bool:
        """True while a driver in the guest runs the balloon."""
        return self.balloon.live

    @property
    def balloon_kept_bytes(self) -> int:
        """The memory of the balloon that is not discarded, as parts of larger host pages."""
        with self.machine.lock:
            return self.balloon.counters.kept_bytes

    def set_balloon_target(self, target_bytes: int) -> None:
        """Request a balloon that leaves `target_bytes` of RAM, more than 0, at most `ram_bytes`."""
        with self.machine.lock:
            self.balloon.set_target((self.config.ram_bytes - target_bytes) // PAGE_BYTES)

    # --- Snapshots and migrations; imported on first use ------------------------------------------
    @property
    def snapshots(self) -> Snapshots:
        """The VM's snapshots."""
        if self._snapshots is None:
            from pyvmm.snapshot.saver import Snapshots  # 8 modules that most guests never use

            self._snapshots = Snapshots(self)
        return self._snapshots

    @property
    def migrations(self) -> Migrations:
        """The VM's outgoing migrations."""
        if self._migrations is None:
            from pyvmm.migration.outgoing import Migrations  # 12 modules, ssl among them

            self._migrations = Migrations(self, tracer=self._tracer)
        return self._migrations

    @cached_property
    def event_watch(self) -> EventWatch:
        """The events of the VM, for one client at a time."""
        from pyvmm.trace.watch import EventWatch  # 2 modules that most guests never use

        with self.machine.lock:
            self.balloon.pages_inside()  # notes them from now on, for views of memory
        return EventWatch(self._tracer)

    @property
    def step(self) -> EventStep:
        """The stop of the guest at an event; for a client that watches."""
        if self._step is None:
            from pyvmm.machine.step import EventStep  # 1 module that most guests never use

            assert isinstance(self._tracer, EventTracer)
            self._step = EventStep(self, self.machine, self._tracer, self.event_watch)
        return self._step

    def leave_paused(self) -> None:
        """Keep the paused guest paused, even if it was stopped at an event."""
        if self._step is not None:
            self._step.leave_paused()

    def traced_devices(self) -> dict[str, list[str]]:
        """As `Machine.traced_devices`."""
        return self.machine.traced_devices()

    async def page_states(self, pages_per_cell: int) -> PageStates:
        """Count the pages of each cell of RAM by state, in a thread.

        The first call begins to note which pages go into the balloon, if that is not known.
        """
        # 2 modules, for views of memory.
        from pyvmm.blocking.in_thread import call_in_thread
        from pyvmm.memory.page_states import KnownPages, PageStates, page_states

        with self.machine.lock:
            inside = self.balloon.pages_inside()
        unused = self.misc_requests.last_unused or self.free_page_hints.last_unused
        known, ram = KnownPages(inside, unused), self.ram
        rows = await call_in_thread(
            "page-states",
            lambda: page_states(ram.memory, ram.pages, ram.areas, known, pages_per_cell),
        )
        return PageStates(rows, self.balloon.actual)

    def pci_registers(self, device: str) -> dict[str, Any]:
        """Return the registers of a PCI device, as JSON; KeyError if there is none of that name."""
        from pyvmm.machine.pci_registers import pci_registers  # 1 module that few guests need

        with self.machine.lock:
            return pci_registers(self.machine.pci_devices[device].transport)

    @property
    def saving(self) -> bool:
        """True while a snapshot is taken, which may pause the guest."""
        return self._snapshots is not None and self._snapshots.active

    @property
    def migrating(self) -> bool:
        """True while the guest is sent to another host."""
        return self._migrations is not None and self._migrations.active

    def load_lazily(self, snapshot: SnapshotFile) -> None:
        """Fill memory from `snapshot`, in the background and where it is touched, before `run`.

        PermissionError where that is not possible. A failure ends the VM with a `UserError`.
        """
        from pyvmm.snapshot.userfaultfd_loader import UserfaultfdLoader  # 6 modules

        self._loader = loader = UserfaultfdLoader(snapshot, self.ram, self.fail)
        self.machine.gate.bar_when(lambda: loader.failed)
        loader.start()

    async def memory_loaded(self) -> None:
        """Wait until memory is complete. Raises `UserError` if that takes too long."""
        ends_at = time.monotonic() + LOADED_TIMEOUT_S
        while self._loader is not None and self._loader.is_alive():
            if time.monotonic() > ends_at:
                raise UserError(
                    "the guest's memory has not been read from its snapshot within"
                    f" {LOADED_TIMEOUT_S:g} s"
                )
            await asyncio.sleep(LOADED_POLL_S)

    def prepare_parts(self) -> None:
        """As `Machine.prepare_parts`."""
        self.machine.prepare_parts()

    def prepare_incoming(self) -> None:
        """As `Machine.prepare_incoming`."""
        self.machine.prepare_incoming()

    def save_parts(self) -> list[Record]:
        """As `Machine.save_parts`."""
        return self.machine.save_parts()

    def restore_parts(self, records: Sequence[Record]) -> None:
        """As `Machine.restore_parts`."""
        self.machine.restore_parts(records)

    def log_dirty_pages(self) -> KvmDirtyLog:
        """As `Machine.log_dirty_pages`."""
        return self.machine.log_dirty_pages()

    async def unused_pages(self, timeout_s: float) -> UnusedPages:
        """As `GuestMachine.unused_pages`."""
        # Saves 2 ms for VMs whose memory is not copied.
        from pyvmm.balloon.unused_pages import query_unused_pages

        return await query_unused_pages(
            self.balloon, self.misc_requests, self.free_page_hints, timeout_s
        )

    def throttle(self, percentage: int) -> None:
        """As `Machine.throttle`."""
        self.machine.throttle(percentage)

    @contextmanager
    def quiescent(self) -> Iterator[None]:
        """Keep devices and guest requests from accessing memory while the block runs.

        The guest is paused.
        """
        self.balloon_statistics.hold(True)
        self._pause_ports(True)  # until the guest is resumed
        try:
            with self.machine.quiescent():
                yield
        finally:
            self.balloon_statistics.hold(False)

    # --- Callbacks --------------------------------------------------------------------------------
    def _soon(self, callback: Callable[..., object], *args: object) -> None:
        """Call `callback` on the event loop; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the VM
            self._loop.call_soon_threadsafe(callback, *args)

    def _is_paused(self) -> bool:
        return self._status != "running"

    def _watch_for_loader(self, thread: VcpuThread) -> None:
        """Let the userfaultfd loader stop a vCPU that has started, should memory be damaged."""
        if self._loader is not None:
            self._loader.watch(thread, KICK_SIGNAL)

    def _balloon_changed(self) -> None:
        self.announce("BALLOON_CHANGE", {"actual": self.balloon_actual_bytes})
