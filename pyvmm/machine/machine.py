# SPDX-License-Identifier: Apache-2.0
"""The machine: which parts it has, how they are wired, and its life from first to last instruction.

This is the only module that knows all the parts. These kinds of thread meet here:

* vCPU threads run the guest and call device models for its register accesses;
* the event loop, the thread that made the machine, serves queues, console input and the control
  socket, and is the only one that starts, pauses or ends the machine;
* `VcpuThrottle`'s, while the guest is throttled, opens and shuts the gate of the vCPU threads;
* nobody else.

One lock, `Machine.lock`, protects every device model and the interrupt routing: vCPU threads hold
it for one register access, the event loop for one bounded piece of queue work. Two registers of the
UART are served outside it, by the KVM_RUN loop: see `SerialFastPath`, whose own mutex is taken last
and held for one character. Everything else belongs to the event loop; vCPU threads reach it with
`call_soon_threadsafe`. The lock is never held while waiting for a vCPU or for the console.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING

from devices.balloon import dialects
from devices.balloon.device import BalloonDevice
from devices.bus import Bus
from devices.legacy.acpi_pm import AcpiPm
from devices.legacy.i8042 import I8042
from devices.legacy.pvpanic import PanicEvent, PvPanic
from devices.legacy.rtc import RTC_PORTS, Rtc
from devices.legacy.uart import Uart16550
from devices.pci.host_bridge import ConfigMechanism1, EnhancedConfig, PciBus
from devices.registers import Register, RegisterTable
from devices.state import Stateful
from devices.virtio.pci_transport import VirtioPciTransport
from pykvm import KvmError, System, abi
from pyvmm.balloon.free_page_hints import FreePageHints
from pyvmm.balloon.misc_requests import MiscRequests
from pyvmm.balloon.statistics import BalloonStatistics
from pyvmm.boot import cpu
from pyvmm.boot.linux64 import BootInfo
from pyvmm.boot.loader import load_linux, read_boot_files
from pyvmm.machine.coalesced_callback import CoalescedCallback
from pyvmm.machine.exit_result import ExitReason, ExitResult
from pyvmm.machine.host_notifiers import IoeventfdNotifiers
from pyvmm.machine.interrupts import GsiLine, InterruptRouter, MsiVectors
from pyvmm.machine.vcpu_thread import (
    KICK_SIGNAL,
    SWITCH_INTERVAL_S,
    GuestBuses,
    VcpuGate,
    VcpuThread,
)
from pyvmm.machine.vcpu_throttle import VcpuThrottle
from pyvmm.memory import layout
from pyvmm.memory.ram import Ram
from pyvmm_native import PAGE_BYTES, kvm_run
from pyvmm_native.serial import SerialFastPath

if TYPE_CHECKING:
    from devices.ports import Tracer
    from pyvmm.config import MachineConfig
    from pyvmm.machine.guest import Status
    from pyvmm.memory.dirty_log import KvmDirtyLog
    from pyvmm.memory.precopy import UnusedPages
    from pyvmm.migration.outgoing import Migrations
    from pyvmm.qmp.vm_control import EventSink
    from pyvmm.snapshot.reader import SnapshotFile
    from pyvmm.snapshot.saver import Snapshots
    from pyvmm.snapshot.userfaultfd_loader import UserfaultfdLoader
    from pyvmm.state.parts import MachineParts
    from pyvmm.state.records import Record
    from pyvmm_native.runs import PageRuns
    from pyvmm_native.serial import ByteQueue

STOP_TIMEOUT_S = 10.0
LOADED_POLL_S = 0.01
BALLOON_NEWS_S = 0.02
"""News of the balloon's size are this old at most: a standard driver has some after every MiB, and
waking the event loop for each costs as much as the MiB does."""


class Machine:
    """One guest and all it sees; satisfies `pyvmm.qmp.vm_control.VmControl`.

    Made on a running event loop. `console_output` takes what the guest writes to its serial port
    (on vCPU threads; its `on_nonempty` must not block); `console_throttle` may block that vCPU,
    with no lock held, until the console has room. `on_console_room` is called on the event loop
    when `console_input` can take more. With `boot` false there is nothing in it yet: its memory is
    written and `restore_parts` called before it runs. Raises `UserError` for a kernel or an
    initramfs that cannot be used.
    """

    def __init__(
        self,
        config: MachineConfig,
        *,
        console_output: ByteQueue,
        tracer: Tracer,
        console_throttle: Callable[[], None] = lambda: None,
        on_console_room: Callable[[], None] = lambda: None,
        boot: bool = True,
    ) -> None:
        self.config = config
        self.lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._tracer = tracer
        self._sinks: list[EventSink] = []
        self._status: Status = "running"
        self._finished: asyncio.Future[ExitResult] = self._loop.create_future()
        self._ending: ExitResult | None = None  # the first that a vCPU thread asked for
        self._gate = VcpuGate()
        self._throttle = VcpuThrottle(self._gate, self._kick_all)
        self._loader: UserfaultfdLoader | None = None

        files = read_boot_files(config) if boot else None
        self.ram = Ram(config.ram_bytes)
        start = load_linux(files, config, self.ram) if files else None
        self._system = System()
        self._vm = self._system.create_vm()
        self._make_platform()
        self._pio = Bus("pio", tracer=tracer)
        self._mmio = Bus("mmio", tracer=tracer)
        self._make_legacy_devices(console_output, on_console_room)
        self._make_pci()
        buses = GuestBuses(self._pio, self._mmio, self.lock, console_throttle)
        self.vcpu_threads = [self._make_vcpu(index, start, buses) for index in range(config.vcpus)]

    # --- Making it ------------------------------------------------------------------------------
    def _make_platform(self) -> None:
        """What KVM provides itself: memory slots, interrupt controllers, timer."""
        self._vm.set_tss_addr(layout.KVM_TSS_GPA)
        self._vm.set_identity_map_addr(layout.KVM_IDENTITY_MAP_GPA)
        self._vm.create_irqchip()
        self._vm.create_pit2(abi.KVM_PIT_SPEAKER_DUMMY)
        self._router = InterruptRouter(self._vm)
        self.ram.attach(self._vm)

    def _make_legacy_devices(self, console_output: ByteQueue, on_room: Callable[[], None]) -> None:
        self._serial = SerialFastPath(console_output, layout.COM1_PORT)
        line = GsiLine(self._vm, layout.COM1_GSI)
        self._uart = Uart16550(line, console_output.put, self._serial)
        self._uart.room_available.add(lambda: self._soon(on_room))
        self._pio.map(layout.COM1_PORT, layout.COM1_PORTS, self._uart)
        power_off = partial(self._end_soon, ExitResult(ExitReason.POWEROFF))
        reset = partial(self._end_soon, ExitResult(ExitReason.RESET))
        i8042 = I8042(reset)
        self._pio.map(layout.I8042_DATA_PORT, 1, i8042.data)
        self._pio.map(layout.I8042_COMMAND_PORT, 1, i8042.command)
        acpi_pm = AcpiPm(power_off, reset)
        self._pio.map(layout.ACPI_PM_PORT, layout.ACPI_PM_PORTS, acpi_pm)
        self._pio.map(layout.PVPANIC_PORT, 1, PvPanic(self._panicked))
        post = RegisterTable("post", [Register("code", 0, 1)])
        self._pio.map(layout.POST_PORT, 1, post)
        low, *high = (length for _, length in layout.ram_ranges(self.config.ram_bytes))
        rtc = Rtc(time.time, low, sum(high))
        self._pio.map(layout.RTC_PORT, RTC_PORTS, rtc)
        self._devices: list[Stateful] = [self._uart, acpi_pm, post, rtc]

    def _make_pci(self) -> None:
        config = self.config
        later = partial(self._soon, self._loop.call_later, BALLOON_NEWS_S)
        changed = CoalescedCallback(self._balloon_changed, later)
        self.balloon = BalloonDevice(
            dialects.by_name(config.dialect),
            self.ram,
            self._tracer,
            offered=config.balloon_features,
        )
        self.balloon.actual_written.add(lambda pages: changed())
        self.balloon_statistics = BalloonStatistics(
            self.balloon, self.lock, self._soon, lambda: self._status != "running"
        )
        self.misc_requests = MiscRequests(
            self.balloon, self.lock, self._soon, lambda: self._status != "running"
        )
        self.free_page_hints = FreePageHints(
            self.balloon, self.lock, self._soon, lambda: self._status != "running"
        )
        queues = len(self.balloon.queues)
        self._host_notifiers = IoeventfdNotifiers(self._vm, queues, self._serve_balloon)
        self._msi = MsiVectors(self._router, queues + 1)
        self._transport = VirtioPciTransport(
            self.balloon, self._msi, self._host_notifiers, self._tracer
        )
        pci = PciBus(self._mmio, layout.PCI_APERTURES, tracer=self._tracer)
        slot = layout.BALLOON_PCI_DEVICE
        pci.add(slot, self._transport.function, GsiLine(self._vm, layout.intx_gsi(slot)))
        ports = ConfigMechanism1(pci)
        self._pio.map(layout.PCI_CONFIG_PORT, layout.PCI_CONFIG_PORTS, ports)
        self._mmio.map(layout.PCI_ECAM_GPA, layout.PCI_ECAM_BYTES, EnhancedConfig(pci))
        self._devices += [ports, pci.host_bridge, self._transport]

    def _make_vcpu(self, index: int, start: BootInfo | None, buses: GuestBuses) -> VcpuThread:
        vcpu = self._vm.create_vcpu(index)
        if start is not None:
            cpu.set_up_vcpu(self._system, vcpu, index, start)
        crashed = partial(self._crashed, index)
        return VcpuThread(vcpu, index, buses, self._serial, self._gate, crashed, self._bug)

    # --- Its life, on the event loop ------------------------------------------------------------
    async def run(self) -> ExitResult:
        """Run the guest until it ends or is ended; all vCPUs are outside the guest afterwards.

        Raises what a device model raised, if one did: that is a bug of ours, not the guest's.
        """
        kvm_run.install_kick_handler(KICK_SIGNAL)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._host_notifiers.start(self._loop)
        self._start_vcpus()
        try:
            outcome = await asyncio.shield(self._finished)
        finally:
            self._status = "shutdown"
            self._gate.stop()
            self._kick_all()
            self.balloon_statistics.close()
            self.misc_requests.close()
            self.free_page_hints.close()
            if "snapshots" in self.__dict__:
                await self.snapshots.end()
            if "migrations" in self.__dict__:
                await self.migrations.end()
        if outcome.ending is ExitReason.PANIC:
            self._status = "guest-panicked"
            self.announce("GUEST_PANICKED", {"action": "poweroff"})
        self.announce("SHUTDOWN", {"guest": outcome.by_guest, "reason": outcome.ending.value})
        return outcome

    def _start_vcpus(self) -> None:
        """Start the threads; none enters the guest before whoever may have to stop it knows it."""
        self._gate.set_paused(True)
        for thread in self.vcpu_threads:
            thread.start()
            if self._loader is not None:
                self._loader.watch(thread, KICK_SIGNAL)
        self._gate.set_paused(self._status != "running")  # it may arrive paused

    def end(self, outcome: ExitResult) -> None:
        """End the machine; the first call decides."""
        if not self._finished.done():
            self._finished.set_result(outcome)

    def close(self) -> None:
        """Wait for the vCPU threads and give everything back to the host."""
        self._throttle.set(0)  # it kicks vCPUs
        self._gate.stop()
        self._kick_all()
        if self._loader is not None:
            self._loader.stop()
        for thread in self.vcpu_threads:
            if thread.is_alive():
                thread.join(STOP_TIMEOUT_S)
            thread.vcpu.close()
        self._host_notifiers.close()
        self._msi.close()
        self._vm.close()
        self._system.close()
        self.ram.close()

    def console_input(self, data: bytes) -> int:
        """Give the guest's serial port input; returns how many bytes it had room for."""
        with self.lock:
            return self._uart.receive(data)

    # --- Its state; imported when it is wanted --------------------------------------------------
    @cached_property
    def snapshots(self) -> Snapshots:
        """What takes snapshots of it."""
        from pyvmm.snapshot.saver import Snapshots

        return Snapshots(self)

    @cached_property
    def migrations(self) -> Migrations:
        """What moves it to another pyvmm."""
        from pyvmm.migration.outgoing import Migrations

        return Migrations(self)

    @cached_property
    def _parts(self) -> MachineParts:
        from pyvmm.state.parts import MachineParts

        vcpus = [thread.vcpu for thread in self.vcpu_threads]
        return MachineParts(self._system, self._vm, vcpus, self._devices)

    def load_lazily(self, snapshot: SnapshotFile) -> None:
        """Fill memory from `snapshot`, in the background and where it is touched, before `run`.

        PermissionError where that is not possible. A failure ends the machine with a `UserError`.
        """
        from pyvmm.snapshot.userfaultfd_loader import UserfaultfdLoader

        self._loader = UserfaultfdLoader(snapshot, self.ram, self._bug)
        self._gate.barred = lambda: self._loader is not None and self._loader.failed
        self._loader.start()

    async def memory_loaded(self) -> None:
        """Wait until memory is complete."""
        while self._loader is not None and self._loader.is_alive():
            await asyncio.sleep(LOADED_POLL_S)

    def prepare_parts(self) -> None:
        """Import, make and ask all that does not need the guest to stand still.

        Otherwise saving or restoring parts for the first time would; UserError if neither can be.
        """
        assert self._parts.here

    def log_dirty_pages(self) -> KvmDirtyLog:
        """Have all changes to memory logged for the length of a block."""
        from pyvmm.memory.dirty_log import KvmDirtyLog

        return KvmDirtyLog(self._vm, self.ram)

    async def unused_pages(self, timeout_s: float) -> UnusedPages:
        """Ask the guest which pages it does not use; with a time-out of 0, do not ask."""
        from pyvmm.balloon.unused_pages import query_unused_pages

        return await query_unused_pages(
            self.balloon, self.misc_requests, self.free_page_hints, timeout_s
        )

    def throttle(self, percentage: int) -> None:
        """Have the vCPUs rest for so much of their time; 0 lets them run."""
        self._throttle.set(percentage)

    @contextmanager
    def quiescent(self) -> Iterator[None]:
        """The guest is paused; devices do not touch its memory either for this block."""
        self._host_notifiers.stop()
        self.balloon_statistics.hold(True)
        try:
            yield
        finally:
            self._host_notifiers.start(self._loop)
            self.balloon_statistics.hold(False)

    def save_parts(self) -> list[Record]:
        """Everything but memory, while the guest is paused."""
        with self.lock:
            return self._parts.save()

    def restore_parts(self, records: Sequence[Record]) -> None:
        """Become what was saved, before `run`. Raises StateError; only `close` may follow that."""
        with self.lock:
            self._parts.restore(records)

    # --- VmControl ---------------------------------------------------------------------------
    @property
    def ram_bytes(self) -> int:
        return self.config.ram_bytes

    @property
    def ram_pages(self) -> PageRuns:
        return self.ram.pages

    @property
    def balloon_actual_bytes(self) -> int:
        return self.config.ram_bytes - self.balloon.actual * PAGE_BYTES

    @property
    def status(self) -> Status:
        return self._status

    def set_balloon_target(self, target_bytes: int) -> None:
        with self.lock:
            self.balloon.set_target((self.config.ram_bytes - target_bytes) // PAGE_BYTES)

    def pause(self) -> None:
        self._gate.set_paused(True)
        self._kick_all()
        if not self._gate.wait_until_empty(STOP_TIMEOUT_S):
            raise RuntimeError(f"a vCPU did not leave the guest within {STOP_TIMEOUT_S} s")
        for thread in self.vcpu_threads:
            # Keeps the guest's watchdogs quiet; refused for a guest that does not use kvmclock.
            with contextlib.suppress(KvmError):
                thread.vcpu.kvmclock_ctrl()
        self._status = "paused"
        self.announce("STOP", {})

    def set_status(self, status: Status) -> None:
        """Say why the paused guest stands still."""
        self._status = status

    def resume(self) -> None:
        self._status = "running"
        self._gate.set_paused(False)
        self.announce("RESUME", {})

    def quit(self) -> None:
        self.end(ExitResult(ExitReason.QUIT))

    def subscribe(self, sink: EventSink) -> None:
        self._sinks.append(sink)

    def announce(self, name: str, data: Mapping[str, object]) -> None:
        """Tell all sinks of an event."""
        for sink in self._sinks:
            sink(name, data)

    def _kick_all(self) -> None:
        for thread in self.vcpu_threads:
            if thread.is_alive():
                thread.kick()

    # --- What devices and vCPU threads call -------------------------------------------------------
    def _soon(self, callback: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(callback, *args)

    def _end_soon(self, outcome: ExitResult) -> None:
        if self._ending is None:  # a guest may ask a hundred thousand times a second
            self._ending = outcome
            self._soon(self.end, outcome)

    def _crashed(self, index: int, what: str) -> None:
        self._end_soon(ExitResult(ExitReason.CRASH, f"vCPU {index} stopped: {what}"))

    def _panicked(self, event: PanicEvent) -> None:
        if event is PanicEvent.PANICKED:
            self._end_soon(ExitResult(ExitReason.PANIC, "the guest kernel panicked"))

    def _bug(self, error: BaseException) -> None:
        def fail() -> None:
            if not self._finished.done():
                self._finished.set_exception(error)

        self._soon(fail)

    def _serve_balloon(self, queue: int) -> bool:
        try:
            with self.lock:
                return self._transport.serve_queue(queue)
        except Exception as error:  # on the loop nobody would hear of it
            self._bug(error)
            return False

    def _balloon_changed(self) -> None:
        self.announce("BALLOON_CHANGE", {"actual": self.balloon_actual_bytes})
