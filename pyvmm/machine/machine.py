# SPDX-License-Identifier: Apache-2.0
"""The machine: a platform completed by its devices, and their wiring.

A `Platform` is created from a `MachineConfig`, and a machine of the platform. It is then either
booted (`boot`) or restored (`restore_parts`), and started; a platform whose guest runs already is
completed while the device lock is held. A machine knows device types only through
`pyvmm.machine.catalogue`, and can be created and run without an event loop: `attach` sets the loop
that serves its queues, timers and console. Guest requests, snapshots and migrations are in the
packages above, combined by `pyvmm.vm`.

One lock, `Machine.lock`, protects every device model and the interrupt routing: vCPU threads hold
it for one register access, the event loop for one bounded piece of queue work. It is never held
while waiting for a vCPU or for the console. The KVM_RUN loop serves two registers of the UART
without it, see `SerialFastPath`, whose own mutex is taken last. Which thread may call what is in
the table of `pyvmm.machine.threads`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from devices.pci.host_bridge import ConfigMechanism1, EnhancedConfig, PciBus
from pykvm import KvmError
from pyvmm.machine.catalogue import CATALOGUE, Ports, make_models, part_kinds
from pyvmm.machine.device_timers import DeviceTimers
from pyvmm.machine.errors import VcpuNotStopped, host_errors_reported
from pyvmm.machine.legacy_devices import LEGACY_DEVICES, LegacyDevices
from pyvmm.machine.platform import STOP_TIMEOUT_S
from pyvmm.machine.threads import Owner
from pyvmm.machine.vcpu_throttle import VcpuThrottle
from pyvmm.machine.virtio_pci_device import VirtioPciDevice
from pyvmm.memory import layout

if TYPE_CHECKING:
    from devices.virtio.device import VirtioDevice
    from pyvmm.boot.loader import BootFiles
    from pyvmm.machine.catalogue import CatalogueEntry
    from pyvmm.machine.event_loop import EventLoop
    from pyvmm.machine.exit_result import ExitResult
    from pyvmm.machine.kvm_setup import KvmSetup
    from pyvmm.machine.platform import Platform
    from pyvmm.machine.vcpu_thread import VcpuThread
    from pyvmm.memory.dirty_log import KvmDirtyLog
    from pyvmm.state.parts import MachineParts
    from pyvmm.state.records import Record


class Machine:
    """One guest's hardware: `platform`, which it owns from now on, with `devices`.

    `exited` and `failed` are those of `platform`. `devices` are the PCI devices that it may
    have. Raises `MachineNotCreated` if the host refuses a request, and ValueError for two devices
    of one name or slot. The platform is closed then, unless it has been started: its caller, who
    holds the device lock, closes that.

    Threads: all methods on the thread that made the machine or attached a loop to it, except those
    whose docstring names another.
    """

    @host_errors_reported()
    def __init__(
        self, platform: Platform, *, devices: Sequence[CatalogueEntry] = CATALOGUE
    ) -> None:
        self.platform = platform
        self.config = config = platform.config
        self.tracer = tracer = platform.tracer
        self.lock = platform.lock
        self.gate = platform.gate
        self.ram = platform.ram
        self.vcpu_threads = platform.vcpu_threads
        self.exited = platform.exited
        self.failed = platform.failed
        self._devices = devices
        self._throttle = VcpuThrottle(self.gate, platform.kick_all)
        self._owner = Owner()
        self._loop: EventLoop | None = None
        self._running = platform.started
        self._legacy = LegacyDevices(
            platform.vm,
            platform.pio,
            config.ram_bytes,
            platform.console_output,
            platform.serial,
            platform.guest_exits,
            tracer.quiet,
        )
        self.console_room = self._legacy.uart.room_available
        """Called, with the device lock held, when `console_input` can take more."""
        self._pci = PciBus(platform.mmio, layout.pci_apertures(config.ram_bytes), tracer=tracer)
        self._pci_ports = ConfigMechanism1(self._pci, self._legacy.reset)
        platform.pio.map(layout.PCI_CONFIG_PORT, layout.PCI_CONFIG_PORTS, self._pci_ports)
        enhanced = EnhancedConfig(self._pci)
        platform.mmio.map(layout.PCI_ECAM_GPA, layout.PCI_ECAM_BYTES, enhanced)
        self._timers = DeviceTimers(self.lock, platform.request_failed)
        self.pci_devices: dict[str, VirtioPciDevice] = {}
        with ExitStack() as refused:
            if not platform.started:  # else its vCPUs may wait for the lock that the caller holds
                refused.callback(platform.close)
            refused.callback(self._close_pci_devices)
            self._make_pci_devices()
            refused.pop_all()

    # --- Construction -----------------------------------------------------------------------------
    def _make_pci_devices(self) -> None:
        ports = Ports(self.ram, self._timers, self.tracer)
        for entry, model in make_models(self._devices, self.config, ports):
            self.pci_devices[entry.name] = VirtioPciDevice(
                model,
                entry.slot,
                pci=self._pci,
                router=self.platform.router,
                lock=self.lock,
                tracer=self.tracer,
                on_error=self.platform.request_failed,
                held=lambda: self.gate.held,
            )

    def _close_pci_devices(self) -> None:
        for device in self.pci_devices.values():
            device.close()

    @property
    def exit(self) -> ExitResult | None:
        """The argument of `exited`, once that has been called."""
        return self.platform.exit

    @property
    def failure(self) -> BaseException | None:
        """The argument of `failed`, once that has been called."""
        return self.platform.failure

    @property
    def started(self) -> bool:
        """True once the vCPUs have been started."""
        return self.platform.started

    def model(self, name: str) -> VirtioDevice:
        """Return the device model called `name` in the catalogue; KeyError without one."""
        return self.pci_devices[name].model

    def boot(self, files: BootFiles) -> None:
        """Boot as `Platform.boot`."""
        self.platform.boot(files)

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
        self.gate.set_paused(True)
        self.platform.start()
        for thread in self.vcpu_threads:
            on_thread(thread)
        if not paused:
            self.resume()

    def pause(self) -> None:
        """Stop all vCPUs outside the guest, and the timers of devices.

        Raises `VcpuNotStopped`, with the guest running as before, if that takes too long.
        """
        assert self._owner.is_current()
        self.gate.set_paused(True)
        self.platform.kick_all()
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
        self.platform.kick_all()

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
        self.platform.stop()

    def close(self) -> None:
        """Wait for the vCPU threads and release all resources.

        A thread that does not end in time keeps the resources of all until the process ends.
        """
        self._throttle.set(0)  # it kicks vCPUs
        self.platform.stop()
        self._timers.stop()
        if self.platform.join():
            self._close_pci_devices()
            self.platform.release()

    def dismantle(self) -> KvmSetup:
        """Release all but the VM, and return that for another machine.

        Neither vCPUs nor an event loop have been started.
        """
        self.catch_notifications(False)  # KVM would keep the addresses of closed eventfds
        self._close_pci_devices()
        self.platform.setup.remove_ram()
        return self.platform.setup

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
        setup, kinds = self.platform.setup, part_kinds(self._devices)
        return MachineParts(setup.system, setup.vm, vcpus, stateful, kinds, setup.rehearsed)

    def prepare_parts(self) -> None:
        """Do what `save_parts` would do while the guest is paused, for all parts but the vCPUs.

        It imports no modules then, and queries nothing of KVM. Raises UserError where it is too
        old.
        """
        with self.lock:
            self._parts.prewarm()

    def prepare_incoming(self) -> None:
        """Do what `restore_parts` and `start` would do while an incoming guest is paused.

        The vCPU threads wait outside the guest, and all code that restores a machine has run once.
        Raises UserError where KVM is too old.
        """
        self.gate.set_paused(True)
        self.platform.start_threads()
        self.rehearse()

    def rehearse(self) -> None:
        """Save and restore what no machine of the same VM has rehearsed, before `restore_parts`.

        Raises UserError where KVM is too old.
        """
        with self.lock, self.platform.router.one_change():
            self.platform.setup.rehearsed = self._parts.rehearse()

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

    @host_errors_reported()
    def restore_parts(self, records: Sequence[Record]) -> None:
        """Restore everything but memory, before `start`.

        Raises StateError, or `MachineNotCreated` if KVM refuses a request; only `close` may follow.
        """
        with self.lock, self.platform.router.one_change():
            self._parts.restore(records)
        self.platform.ready = True

    def log_dirty_pages(self) -> KvmDirtyLog:
        """Return a context manager that logs all changes to memory.

        Its methods may be called on the migration's or the snapshot's thread.
        """
        from pyvmm.memory.dirty_log import KvmDirtyLog  # 0.3 ms, for migrations and snapshots

        return KvmDirtyLog(self.platform.vm, self.ram)

    # --- Called by devices and vCPU threads -------------------------------------------------------
    def _serve_devices(self) -> None:
        if self._loop is not None and not self.gate.held:
            for device in self.pci_devices.values():
                device.start(self._loop)
