# SPDX-License-Identifier: Apache-2.0
"""The platform: the part of a machine that a guest's first instructions need, and no more.

That is RAM with the kernel, KVM's interrupt controllers and timer, and the vCPUs with their
threads. The guest reaches everything else, the device models, by port and memory accesses, which
go through two buses. `pyvmm.machine.machine` maps the devices there. It may do so while the guest
runs, as an access waits for the device lock: the thread that starts the vCPUs holds the lock until
the machine is complete,

    platform = Platform(config, console_output=queue, tracer=tracer)
    platform.boot(files)
    with platform.lock:
        platform.start()
        machine = Machine(platform)

and the guest finds a complete machine at its first access. Nothing that may be refused because of
the configuration is left for then.

KVM API: KVM_CREATE_VM, KVM_CREATE_IRQCHIP, KVM_CREATE_PIT2, KVM_CREATE_VCPU
(Documentation/virt/kvm/api.rst, section 4).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from devices.bus import Bus
from devices.listeners import Listeners
from pyvmm.blocking.thread_limit import thread_limit_reported
from pyvmm.boot import cpu
from pyvmm.boot.loader import load_linux
from pyvmm.boot.panic import rebooted_after_panic
from pyvmm.machine.errors import PlatformNotCreated, host_errors_reported, kvm_refusal
from pyvmm.machine.exit_result import PANICKED, ExitReason, ExitResult
from pyvmm.machine.kvm_setup import KvmSetup, make_ram
from pyvmm.machine.vcpu_thread import (
    KICK_SIGNAL,
    SWITCH_INTERVAL_S,
    GuestBuses,
    VcpuGate,
    VcpuThread,
    accept_gil_requests,
)
from pyvmm.memory import layout
from pyvmm_native import kvm_run
from pyvmm_native.serial import SerialFastPath

if TYPE_CHECKING:
    from devices.ports import Tracer
    from pykvm import Vcpu
    from pyvmm.boot.linux64 import BootInfo
    from pyvmm.boot.loader import BootFiles
    from pyvmm.config import MachineConfig
    from pyvmm_native.serial import ByteQueue

STOP_TIMEOUT_S = 10.0
"""Longest time for all vCPUs to leave the guest."""


class Platform:
    """RAM, interrupt controllers, timer and vCPUs of one guest, as `config` describes them.

    `setup` is its VM, which is created here by default; one that was given stays the caller's if a
    vCPU is refused. `console_output` receives the guest's output on its serial port (on vCPU
    threads); `console_throttle` may block that vCPU, with no lock held, until the console has room.
    `exited` is called once, on any thread, when the guest ends the VM, and `failed` with an
    exception of a device model, which is a bug in pyvmm and not the guest's fault. Raises
    `HostMemoryUnavailable`, and `PlatformNotCreated` if KVM refuses a request.

    Threads: as `Machine`; `guest_exits` and `request_failed` any.
    """

    @host_errors_reported(PlatformNotCreated)
    def __init__(
        self,
        config: MachineConfig,
        *,
        console_output: ByteQueue,
        tracer: Tracer,
        console_throttle: Callable[[], None] = lambda: None,
        setup: KvmSetup | None = None,
    ) -> None:
        self.config = config
        self.tracer = tracer
        self.console_output = console_output
        self.lock = threading.Lock()
        self.exited: Listeners[ExitResult] = Listeners()
        self.failed: Listeners[BaseException] = Listeners()
        self.exit: ExitResult | None = None
        self.failure: BaseException | None = None
        self.ready = False
        """True once the vCPUs have a state to start with."""
        self.started = False
        """True once `start` has been called."""
        self.gate = VcpuGate()
        self.pio = Bus("pio", tracer=tracer)
        self.mmio = Bus("mmio", tracer=tracer)
        self.serial = SerialFastPath(console_output, layout.COM1_PORT)
        buses = GuestBuses(self.pio, self.mmio, self.lock, console_throttle)
        # A VM keeps the processor's virtualization enabled until its last vCPU is closed, too.
        with ExitStack() as refused:
            if setup is None:
                ram = make_ram(config)
                refused.callback(ram.close)
                setup = KvmSetup(ram)
                refused.callback(setup.close)
            self.setup = setup
            """Its VM."""
            self.ram, self.system, self.vm = setup.ram, setup.system, setup.vm
            self.router = setup.router
            self.vcpu_threads = [
                self._make_thread(index, vcpu, buses)
                for index, vcpu in enumerate(setup.vcpus(config.vcpus))
            ]
            refused.pop_all()

    def _make_thread(self, index: int, vcpu: Vcpu, buses: GuestBuses) -> VcpuThread:
        crashed = partial(self._vcpu_crashed, index)
        exits = kvm_run.ExitCounters(index, self.tracer.native)
        return VcpuThread(
            vcpu, index, buses, self.serial, exits, self.gate, crashed, self.request_failed
        )

    def boot(self, files: BootFiles) -> None:
        """Load the kernel, and `set_up_vcpus` for it. Raises `KernelUnusable`."""
        self.set_up_vcpus(load_linux(files, self.config, self.ram))

    @host_errors_reported(PlatformNotCreated)
    def set_up_vcpus(self, start: BootInfo) -> None:
        """Set the vCPUs up for the entry point of a kernel that RAM has.

        Raises `PlatformNotCreated` if KVM refuses a request.
        """
        for index, thread in enumerate(self.vcpu_threads):
            cpu.set_up_vcpu(self.system, thread.vcpu, index, start)
        self.ready = True

    def start(self) -> None:
        """Start the vCPUs, which enter the guest unless the gate is closed.

        RuntimeError for a machine that was neither booted nor restored.
        """
        if not self.ready:
            raise RuntimeError("the machine was neither booted nor restored")
        self.started = True
        self.start_threads()

    def start_threads(self) -> None:
        """Start the threads of the vCPUs, unless they have been started.

        Raises `ThreadNotStarted`; some may have been started then.
        """
        kvm_run.install_kick_handler(KICK_SIGNAL)
        accept_gil_requests()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        for thread in self.vcpu_threads:
            if thread.ident is None:
                with thread_limit_reported():
                    thread.start()

    def kick_all(self) -> None:
        """Make all vCPUs leave the guest soon, and check the gate."""
        for thread in self.vcpu_threads:
            if thread.is_alive():
                thread.kick()

    def stop(self) -> None:
        """Stop the vCPUs permanently; their threads end."""
        self.gate.stop()
        self.kick_all()

    def join(self) -> bool:
        """Stop the vCPUs, and wait for their threads; return False if one does not end in time."""
        self.stop()
        ends_at = time.monotonic() + STOP_TIMEOUT_S
        started = [thread for thread in self.vcpu_threads if thread.is_alive()]
        for thread in started:
            thread.join(max(0.0, ends_at - time.monotonic()))
        return not any(thread.is_alive() for thread in started)

    def release(self) -> None:
        """Release all resources, after `join` has returned True."""
        self.setup.close()

    def close(self) -> None:
        """Stop and release a platform without a machine, as `Machine.close` does."""
        if self.join():
            self.release()

    # --- Called by devices and vCPU threads -------------------------------------------------------
    def guest_exits(self, result: ExitResult) -> None:
        """End the VM with `result`, unless it has ended."""
        if self.exit is None:  # a guest may request it 100,000 times a second
            if result.reason is ExitReason.RESET and rebooted_after_panic(
                self.ram.memory, self.config.command_line
            ):
                result = ExitResult(ExitReason.PANIC, PANICKED)
            self.exit = result
            self.exited(result)

    def request_failed(self, error: BaseException) -> None:
        """End the VM after an exception on any thread: KVM's refusal, or else a bug."""
        if refusal := kvm_refusal(error):
            self.guest_exits(
                ExitResult(ExitReason.CRASH, f"a request to KVM has failed: {refusal}")
            )
        else:
            self.failure = error
            self.failed(error)

    def _vcpu_crashed(self, index: int, reason: str) -> None:
        self.guest_exits(ExitResult(ExitReason.CRASH, f"vCPU {index} stopped: {reason}"))
