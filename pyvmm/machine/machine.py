# SPDX-License-Identifier: Apache-2.0
"""The machine: RAM, vCPUs, buses and devices on KVM, and their wiring.

A machine is created from a `MachineConfig`, then either booted (`boot`) or restored
(`restore_parts`), then started. It knows device types only through `pyvmm.machine.catalogue`, and
can be created and run without an event loop: `attach` sets the loop that serves its queues, timers
and console. Guest requests, snapshots and migrations are in the packages above, combined by
`pyvmm.vm`.

One lock, `Machine.lock`, protects every device model and the interrupt routing: vCPU threads hold
it for one register access, the event loop for one bounded piece of queue work. It is never held
while waiting for a vCPU or for the console. The KVM_RUN loop serves two registers of the UART
without it, see `SerialFastPath`, whose own mutex is taken last. Which thread may call what is in
the table of `pyvmm.machine.threads`.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING

from devices.bus import Bus
from devices.listeners import Listeners
from devices.pci.host_bridge import ConfigMechanism1, EnhancedConfig, PciBus
from pykvm import KvmError, System, abi
from pyvmm.boot import cpu
from pyvmm.boot.loader import load_linux
from pyvmm.boot.panic import rebooted_after_panic
from pyvmm.machine.catalogue import CATALOGUE, Ports, make_models, part_kinds
from pyvmm.machine.device_timers import DeviceTimers
from pyvmm.machine.errors import MachineNotCreated, VcpuNotStopped, kvm_refusal
from pyvmm.machine.exit_result import PANICKED, ExitReason, ExitResult
from pyvmm.machine.interrupts import InterruptRouter, set_pci_levels
from pyvmm.machine.legacy_devices import LEGACY_DEVICES, LegacyDevices
from pyvmm.machine.threads import Owner
from pyvmm.machine.vcpu_thread import (
    KICK_SIGNAL,
    SWITCH_INTERVAL_S,
    GuestBuses,
    VcpuGate,
    VcpuThread,
    accept_gil_requests,
)
from pyvmm.machine.vcpu_throttle import VcpuThrottle
from pyvmm.machine.virtio_pci_device import VirtioPciDevice
from pyvmm.memory import layout
from pyvmm.memory.ram import Ram
from pyvmm_native import kvm_run

if TYPE_CHECKING:
    from devices.ports import Tracer
    from devices.virtio.device import VirtioDevice
    from pyvmm.boot.loader import BootFiles
    from pyvmm.config import MachineConfig
    from pyvmm.machine.catalogue import CatalogueEntry
    from pyvmm.machine.event_loop import EventLoop
    from pyvmm.memory.dirty_log import KvmDirtyLog
    from pyvmm.state.parts import MachineParts
    from pyvmm.state.records import Record
    from pyvmm_native.serial import ByteQueue

STOP_TIMEOUT_S = 10.0
"""Longest time for all vCPUs to leave the guest."""


@contextmanager
def _host_errors_reported() -> Iterator[None]:
    """Raise `MachineNotCreated` for a request that KVM or the host refuses in the block."""
    try:
        yield
    except OSError as error:
        reason = error if isinstance(error, KvmError) else error.strerror
        raise MachineNotCreated(f"the machine cannot be created: {reason}") from error


def _make_ram(config: MachineConfig) -> Ram:
    if config.hugepages != "hugetlbfs":
        return Ram(config.ram_bytes, transparent=config.hugepages == "transparent")
    # 4 modules, for RAM in huge pages of hugetlbfs.
    from pyvmm.memory.hugetlb_ram import HugetlbRam

    return HugetlbRam(config.ram_bytes)


class Machine:
    """One guest's hardware.

    `console_output` receives the guest's output on its serial port (on vCPU threads);
    `console_throttle` may block that vCPU, with no lock held, until the console has room.
    `exited` is called once, on any thread, when the guest ends the VM, and `failed` with an
    exception of a device model, which is a bug in pyvmm and not the guest's fault. `devices` are
    the PCI devices that the machine may have. Raises `HostMemoryUnavailable`, `MachineNotCreated`
    if KVM refuses a request, and ValueError for two devices of one name or slot.

    Threads: all methods on the thread that made the machine or attached a loop to it, except those
    whose docstring names another.
    """

    @_host_errors_reported()
    def __init__(
        self,
        config: MachineConfig,
        *,
        console_output: ByteQueue,
        tracer: Tracer,
        console_throttle: Callable[[], None] = lambda: None,
        devices: Sequence[CatalogueEntry] = CATALOGUE,
    ) -> None:
        self.config = config
        self._devices = devices
        self.lock = threading.Lock()
        self.exited: Listeners[ExitResult] = Listeners()
        self.failed: Listeners[BaseException] = Listeners()
        self.exit: ExitResult | None = None
        """The argument of `exited`, once that has been called."""
        self.failure: BaseException | None = None
        """The argument of `failed`, once that has been called."""
        self.gate = VcpuGate()
        self._throttle = VcpuThrottle(self.gate, self._kick_all)
        self.tracer = tracer
        self._owner = Owner()
        self._loop: EventLoop | None = None
        self._ready = False
        self.started = False
        """True once `start` has been called."""
        self._running = False
        self.ram = _make_ram(config)
        self._system = System()
        self._vm = self._system.create_vm()
        self._router = self._set_up_kvm_platform()
        self._pio = Bus("pio", tracer=tracer)
        self._mmio = Bus("mmio", tracer=tracer)
        self._legacy = LegacyDevices(
            self._vm, self._pio, config.ram_bytes, console_output, self._guest_exits, tracer.quiet
        )
        self.console_room = self._legacy.uart.room_available
        """Called, with the device lock held, when `console_input` can take more."""
        self._pci = PciBus(self._mmio, layout.pci_apertures(config.ram_bytes), tracer=tracer)
        self._pci_ports = ConfigMechanism1(self._pci, self._legacy.reset)
        self._pio.map(layout.PCI_CONFIG_PORT, layout.PCI_CONFIG_PORTS, self._pci_ports)
        self._mmio.map(layout.PCI_ECAM_GPA, layout.PCI_ECAM_BYTES, EnhancedConfig(self._pci))
        self._timers = DeviceTimers(self.lock, self._request_failed)
        self.pci_devices = self._make_pci_devices()
        buses = GuestBuses(self._pio, self._mmio, self.lock, console_throttle)
        self.vcpu_threads = [self._make_vcpu(index, buses) for index in range(config.vcpus)]

    # --- Construction -----------------------------------------------------------------------------
    def _set_up_kvm_platform(self) -> InterruptRouter:
        """Set up KVM's memory slots, interrupt controllers and timer."""
        self._vm.set_tss_addr(layout.KVM_TSS_GPA)
        self._vm.set_identity_map_addr(layout.KVM_IDENTITY_MAP_GPA)
        self._vm.create_irqchip()
        self._vm.create_pit2(abi.KVM_PIT_SPEAKER_DUMMY)
        set_pci_levels(self._vm)
        router = InterruptRouter(self._vm)
        self.ram.attach(self._vm)
        return router

    def _make_pci_devices(self) -> dict[str, VirtioPciDevice]:
        ports = Ports(self.ram, self._timers, self.tracer)
        return {
            entry.name: VirtioPciDevice(
                model,
                entry.slot,
                pci=self._pci,
                router=self._router,
                lock=self.lock,
                tracer=self.tracer,
                on_error=self._request_failed,
                held=lambda: self.gate.held,
            )
            for entry, model in make_models(self._devices, self.config, ports)
        }

    def _make_vcpu(self, index: int, buses: GuestBuses) -> VcpuThread:
        vcpu = self._vm.create_vcpu(index)
        crashed = partial(self._vcpu_crashed, index)
        serial = self._legacy.serial
        exits = kvm_run.ExitCounters(index, self.tracer.native)
        return VcpuThread(
            vcpu, index, buses, serial, exits, self.gate, crashed, self._request_failed
        )

    def model(self, name: str) -> VirtioDevice:
        """Return the device model called `name` in the catalogue; KeyError without one."""
        return self.pci_devices[name].model

    @_host_errors_reported()
    def boot(self, files: BootFiles) -> None:
        """Load the kernel and set the vCPUs up for its entry point.

        Raises `MachineNotCreated` if KVM refuses a request.
        """
        start = load_linux(files, self.config, self.ram)
        for index, thread in enumerate(self.vcpu_threads):
            cpu.set_up_vcpu(self._system, thread.vcpu, index, start)
        self._ready = True

    # --- Running ----------------------------------------------------------------------------------
    def attach(self, loop: EventLoop) -> None:
        """Serve queues and timers on `loop` from now on, in the calling thread.

        Also adopts that thread: further calls come from it.
        """
        self._owner.adopt()
        self._loop = loop
        self._serve_devices()
        if self._running:
            self._timers.start(loop)

    def start(
        self, *, paused: bool = False, on_thread: Callable[[VcpuThread], None] = lambda thread: None
    ) -> None:
        """Start the vCPUs; with `paused` none of them enters the guest yet.

        `on_thread` is called with every vCPU thread before any of them enters the guest.
        RuntimeError for a machine that was neither booted nor restored.
        """
        assert self._owner.is_current()
        if not self._ready:
            raise RuntimeError("the machine was neither booted nor restored")
        self.started = True
        self._start_threads()
        for thread in self.vcpu_threads:
            on_thread(thread)
        if not paused:
            self.resume()

    def _start_threads(self) -> None:
        """Start the vCPU threads, all of them outside the guest, unless they have been started."""
        kvm_run.install_kick_handler(KICK_SIGNAL)
        accept_gil_requests()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self.gate.set_paused(True)
        for thread in self.vcpu_threads:
            if thread.ident is None:
                thread.start()

    def pause(self) -> None:
        """Stop all vCPUs outside the guest, and the timers of devices.

        Raises `VcpuNotStopped`, with the guest running as before, if that takes too long.
        """
        assert self._owner.is_current()
        self.gate.set_paused(True)
        self._kick_all()
        if not self.gate.wait_until_empty(STOP_TIMEOUT_S):
            self.gate.set_paused(False)
            raise VcpuNotStopped(f"a vCPU has not left the guest within {STOP_TIMEOUT_S:g} s")
        self._running = False
        self._timers.stop()
        for thread in self.vcpu_threads:
            # Keeps the guest's watchdogs quiet; refused for a guest that does not use kvmclock.
            with contextlib.suppress(KvmError):
                thread.vcpu.kvmclock_ctrl()

    def resume(self) -> None:
        """Let the vCPUs enter the guest."""
        assert self._owner.is_current()
        self._running = True
        if self._loop is not None:
            self._timers.start(self._loop)
        if self.gate.held:
            self.release()
        self.gate.set_paused(False)

    @property
    def held(self) -> bool:
        """True while the guest is held at an event (`pyvmm.machine.step`)."""
        return self.gate.held

    def hold(self) -> None:
        """Let no vCPU enter the guest until `resume` or `release`; called on any thread."""
        self.gate.set_held(True)
        self._kick_all()

    def hold_devices(self) -> None:
        """Serve no queue while the machine is held; notifications stay pending."""
        if self.gate.held:
            for device in self.pci_devices.values():
                device.stop()

    def release(self) -> None:
        """End the hold; a machine that is paused stays paused."""
        self.gate.set_held(False)
        self._serve_devices()

    def catch_notifications(self, caught: bool) -> None:
        """Let KVM catch notifications, or make them register accesses."""
        for device in self.pci_devices.values():
            device.catch_notifications(caught)

    def traced_devices(self) -> dict[str, list[str]]:
        """Return the names of the queues of each device that emits events, by its name."""
        others = (self._pci.host_bridge.name, *LEGACY_DEVICES)
        return {name: [] for name in others} | {
            name: [queue.spec.name for queue in device.model.queues]
            for name, device in self.pci_devices.items()
        }

    def stop(self) -> None:
        """Stop the vCPUs permanently; their threads end."""
        self.gate.stop()
        self._kick_all()

    def close(self) -> None:
        """Wait for the vCPU threads and release all resources.

        A thread that does not end in time keeps the resources of all until the process ends.
        """
        self._throttle.set(0)  # it kicks vCPUs
        self.stop()
        self._timers.stop()
        ends_at = time.monotonic() + STOP_TIMEOUT_S
        started = [thread for thread in self.vcpu_threads if thread.is_alive()]
        for thread in started:
            thread.join(max(0.0, ends_at - time.monotonic()))
        if any(thread.is_alive() for thread in started):
            return
        for thread in self.vcpu_threads:
            thread.vcpu.close()
        for device in self.pci_devices.values():
            device.close()
        self._vm.close()
        self._system.close()
        self.ram.close()

    def console_input(self, data: bytes) -> int:
        """Pass input to the guest's serial port; return the number of bytes accepted."""
        with self.lock:
            return self._legacy.uart.receive(data)

    def throttle(self, percentage: int) -> None:
        """Keep the vCPUs out of the guest for `percentage` of their time; 0 lets them run."""
        self._throttle.set(percentage)

    # --- State ------------------------------------------------------------------------------------
    @cached_property
    def _parts(self) -> MachineParts:
        from pyvmm.state.parts import MachineParts  # 13 modules, for saving and restoring

        vcpus = [thread.vcpu for thread in self.vcpu_threads]
        transports = [device.transport for device in self.pci_devices.values()]
        stateful = [*self._legacy.stateful, self._pci_ports, self._pci.host_bridge, *transports]
        return MachineParts(self._system, self._vm, vcpus, stateful, part_kinds(self._devices))

    def prepare_parts(self) -> None:
        """Do what `save_parts` and `restore_parts` would do while the guest is paused.

        They import no modules then, and query nothing of KVM. Raises UserError where it is too old.
        """
        with self.lock:
            self._parts.prewarm()
        self._parts.rehearse_saving_vcpus()

    def prepare_incoming(self) -> None:
        """Do what `restore_parts` and `start` would do while an incoming guest is paused.

        The vCPU threads wait outside the guest, and all code that restores a machine has run once.
        Raises UserError where KVM is too old.
        """
        self._start_threads()
        with self.lock, self._router.one_change():
            self._parts.prewarm()
            self._parts.rehearse()

    @contextmanager
    def quiescent(self) -> Iterator[None]:
        """Keep devices from accessing the memory of the paused guest while the block runs."""
        for device in self.pci_devices.values():
            device.stop()
        try:
            yield
        finally:
            self._serve_devices()

    def save_parts(self) -> list[Record]:
        """Save everything but memory; the guest is paused."""
        with self.lock:
            return self._parts.save()

    @_host_errors_reported()
    def restore_parts(self, records: Sequence[Record]) -> None:
        """Restore everything but memory, before `start`.

        Raises StateError, or `MachineNotCreated` if KVM refuses a request; only `close` may follow.
        """
        with self.lock, self._router.one_change():
            self._parts.restore(records)
        self._ready = True

    def log_dirty_pages(self) -> KvmDirtyLog:
        """Return a context manager that logs all changes to memory.

        Its methods may be called on the migration's or the snapshot's thread.
        """
        from pyvmm.memory.dirty_log import KvmDirtyLog  # 0.3 ms, for migrations and snapshots

        return KvmDirtyLog(self._vm, self.ram)

    # --- Called by devices and vCPU threads -------------------------------------------------------
    def _serve_devices(self) -> None:
        if self._loop is not None and not self.gate.held:
            for device in self.pci_devices.values():
                device.start(self._loop)

    def _kick_all(self) -> None:
        for thread in self.vcpu_threads:
            if thread.is_alive():
                thread.kick()

    def _guest_exits(self, result: ExitResult) -> None:
        if self.exit is None:  # a guest may request it 100,000 times a second
            if result.reason is ExitReason.RESET and rebooted_after_panic(
                self.ram.memory, self.config.command_line
            ):
                result = ExitResult(ExitReason.PANIC, PANICKED)
            self.exit = result
            self.exited(result)

    def _request_failed(self, error: BaseException) -> None:
        """End the machine after an exception on any thread: KVM's refusal, or else a bug."""
        if refusal := kvm_refusal(error):
            self._guest_exits(
                ExitResult(ExitReason.CRASH, f"a request to KVM has failed: {refusal}")
            )
        else:
            self.failure = error
            self.failed(error)

    def _vcpu_crashed(self, index: int, reason: str) -> None:
        self._guest_exits(ExitResult(ExitReason.CRASH, f"vCPU {index} stopped: {reason}"))
