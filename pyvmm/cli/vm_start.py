# SPDX-License-Identifier: Apache-2.0
"""Start a guest before anything that serves it.

A guest needs no device for its first instructions, and no event loop until much later: the
notifications of its queues stay pending in their eventfds, and the output of its console waits in a
queue. So a boot does first what may be refused, and nothing else: `VmStart` binds the sockets,
opens the files and the recording, creates the platform, loads the kernel and starts the vCPUs. The
device models are imported and created while the guest runs, which waits for them at its first
access (`pyvmm.machine.platform`); asyncio, the server of the control socket and the console's input
follow (`boot_run`), and `terminal_run` and `command_run` then serve the guest on the event loop. A
signal that ends the process is caught before there is anything that must be removed, and waits in
`LateLoop` for the loop.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from devices.listeners import Listeners
from pyvmm.cli.end_signals import EndSignals
from pyvmm.cli.late_loop import LateLoop
from pyvmm.machine.errors import PlatformNotCreated
from pyvmm.machine.platform import Platform
from pyvmm.trace.tracer import EventTracer

if TYPE_CHECKING:
    from pyvmm.cli.console.ports import PortHosts, PortOption
    from pyvmm.cli.record_options import RecordOptions
    from pyvmm.config import MachineConfig
    from pyvmm.machine.early_boot import EarlyBoot
    from pyvmm.machine.kvm_setup import KvmSetup
    from pyvmm.machine.machine import Machine
    from pyvmm.runtime_directory.announcement import ListeningSocket
    from pyvmm.sockets.unix import UnixListener
    from pyvmm.trace.recorder import Recorder
    from pyvmm_native.serial import ByteQueue


class ConsoleOutput(Protocol):
    """Receives the output on the guest's serial port."""

    @property
    def queue(self) -> ByteQueue:
        """Takes the output."""

    @property
    def throttle(self) -> Callable[[], None]:
        """Called on a vCPU's thread, which it may block until there is room."""


class VmStart:
    """The part of a VM's run that needs no event loop; leaving `stack` releases it.

    `tracer` receives the VM's events, which go to the recording that `record` names. `announced` is
    the control socket by which the guest is announced, if it is. Raises `SocketNotCreated` and
    `RecordingNotWritten`.

    Threads: event loop, which is the main thread; `release` any.
    """

    def __init__(
        self,
        stack: ExitStack,
        sockets: Sequence[Path],
        ports: Sequence[PortOption],
        record: RecordOptions | None = None,
        announced: ListeningSocket | None = None,
    ) -> None:
        self._stack = stack
        self._record = record
        self.announced = announced
        self.tracer = EventTracer()
        self.loop = LateLoop()
        self.signalled: Listeners[int] = Listeners()
        """Called on the event loop with the number of a signal that is to end the VM."""
        self.releasing: Listeners[[]] = Listeners()
        """Called by `release`."""
        self.listeners: list[UnixListener] = []
        self.signals = EndSignals(self.loop, self.signalled, self.release)
        stack.push(self._close_signals)
        self.signals.start()
        self._platform: Platform | None = None
        self._machine: Machine | None = None
        self._recorder: Recorder | None = None
        for path in sockets:
            self._bind(path)
        self.port_hosts = self._make_port_hosts(ports) if ports else None
        if record is not None:
            self._start_recording(record)

    def _close_signals(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Let a signal wait again that has ended no guest, as another KVM may run it."""
        self.signals.close()
        if isinstance(error, PlatformNotCreated) and self.signals.received:
            os.kill(os.getpid(), self.signals.received)

    def _bind(self, path: Path) -> None:
        # Late: saves 0.9 ms without --qmp.
        from pyvmm.sockets.lab_paths import listening_path
        from pyvmm.sockets.unix import UnixListener

        listener = UnixListener(listening_path(path), shown_as=path)
        self._stack.callback(listener.remove)
        self.listeners.append(listener)

    def _make_port_hosts(self, ports: Sequence[PortOption]) -> PortHosts:
        # Late: saves 3 ms without --port.
        from pyvmm.cli.console.ports import PortHosts

        return PortHosts(self._stack, ports)

    def _start_recording(self, record: RecordOptions) -> None:
        # Late: saves 2 ms without --record.
        from pyvmm.trace.recorder import Recorder
        from pyvmm.trace.recording_file import RecordingFile

        file = RecordingFile(record.path, record.limit_bytes)
        self._recorder = recorder = Recorder(self.tracer, file)
        self._stack.callback(recorder.close)
        recorder.start()

    def keep_recording(self) -> None:
        """Let the recording, if there is one, replace an earlier one: nothing is refused any more.

        Raises `RecordingNotWritten`.
        """
        if self._recorder is not None:
            self._recorder.commit()

    def create_platform(
        self, config: MachineConfig, console: ConsoleOutput, setup: KvmSetup | None = None
    ) -> Platform:
        """Return a platform, which its caller closes, with the `console` on its serial port.

        `setup` is its VM, if that has been created.
        """
        platform = Platform(
            config,
            console_output=console.queue,
            console_throttle=console.throttle,
            tracer=self.tracer,
            setup=setup,
        )
        if self._record is not None:
            for thread in platform.vcpu_threads:
                thread.exits.sample_every = self._record.sample_every
        return platform

    def boot(self, boot: EarlyBoot, console: ConsoleOutput) -> None:
        """Run the machine of `boot`, which has begun."""
        self._platform = platform = self.create_platform(boot.config, console, boot.setup())
        self._stack.callback(self._close_machine)
        platform.set_up_vcpus(boot.loaded())
        self.keep_recording()
        with platform.lock:  # the guest's first access to a device waits
            platform.start()
            # Late: 6 ms (the device models), while the guest runs.
            from pyvmm.machine.machine import Machine

            self._machine = Machine(platform)
        gc.enable()

    def take_machine(self) -> Machine:
        """Return the machine of `boot`, which its caller closes from now on."""
        assert self._machine is not None
        machine, self._machine, self._platform = self._machine, None, None
        return machine

    def _close_machine(self) -> None:
        if (owner := self._machine or self._platform) is not None:
            owner.close()

    def release(self) -> None:
        """Restore the terminal and remove the sockets."""
        self.releasing()
        for listener in self.listeners:
            listener.remove()
        if self.announced is not None:
            self.announced.remove()
