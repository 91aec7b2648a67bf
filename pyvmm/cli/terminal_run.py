# SPDX-License-Identifier: Apache-2.0
"""Run one VM with its console on this terminal, to its end.

The VM is booted or restored from a snapshot (`run_vm`), or received from another pyvmm
(`run_incoming`). `_TerminalRun` has what these share: the console, and the wait for a source.
"""

from __future__ import annotations

import signal
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvmm.cli.asyncio_without_ssl import asyncio
from pyvmm.cli.console.terminal import Action, ConsoleIo
from pyvmm.cli.errors import CommandError
from pyvmm.cli.vm_run import VmRun
from pyvmm.errors import UserError
from pyvmm.machine.exit_result import ExitReason, ExitResult
from pyvmm.standard_streams.text import print_message
from pyvmm.units import MIB, format_size
from pyvmm.vm import VirtualMachine

if TYPE_CHECKING:
    from pyvmm.cli.console.ports import PortOption
    from pyvmm.cli.record_options import RecordOptions
    from pyvmm.config import HugePages, MachineConfig
    from pyvmm.console.ports import LockedPort
    from pyvmm.migration.errors import MigrationError
    from pyvmm.runtime_directory.announcement import ListeningSocket
    from pyvmm.snapshot.reader import SnapshotFile
    from pyvmm.sockets.listener import MigrationListener

OUTPUT_TIMEOUT_S = 20.0
"""Longest wait for the reader of the console's output after the guest has ended."""
HURRIED_OUTPUT_TIMEOUT_S = 1.0
"""The same after a signal, `quit`, the escape key or a crash."""


async def run_vm(
    config: MachineConfig,
    sockets: Sequence[Path],
    snapshot: SnapshotFile | None = None,
    ports: Sequence[PortOption] = (),
    overlay: bytes = b"",
    record: RecordOptions | None = None,
    announced: ListeningSocket | None = None,
) -> int:
    """Boot a VM, with the archive `overlay` in its initramfs, or restore it from `snapshot`.

    Runs it to its end and returns the exit status.
    """
    async with AsyncExitStack() as stack:
        terminal = _TerminalRun(stack, sockets, ports, None, record, announced)
        vm = terminal.make(config)
        if snapshot is None:
            vm.boot(overlay)
        else:
            _restore(snapshot, vm)
        return await terminal.run()


async def run_incoming(
    listener: MigrationListener,
    max_ram_bytes: int,
    hugepages: HugePages,
    sockets: Sequence[Path],
    ports: Sequence[PortOption] = (),
    record: RecordOptions | None = None,
    announced: ListeningSocket | None = None,
) -> int:
    """Wait for a VM with at most `max_ram_bytes`, then run it; returns the exit status.

    Its RAM is in `hugepages`.
    """
    # Late: saves 22 ms where no migration comes in.
    from pyvmm.migration.incoming import accept_migration

    async with AsyncExitStack() as stack:
        stack.callback(listener.close)
        terminal = _TerminalRun(stack, sockets, ports, listener, record, announced)

        def make(config: MachineConfig) -> VirtualMachine:
            if config.ram_bytes > max_ram_bytes:
                raise CommandError(
                    f"the guest has {format_size(config.ram_bytes)} of RAM, the destination takes"
                    f" at most {format_size(max_ram_bytes)}",
                    f"start the destination with --memory {config.ram_bytes // MIB}M",
                )
            return terminal.make(replace(config, hugepages=hugepages))

        terminal.signals.start()
        print_message(f"waiting for a guest at {listener.address}")

        def refused(error: MigrationError) -> None:
            print_message(f"{_refusal(error)}; still waiting at {listener.address}")

        running = await terminal.wait(accept_migration(listener, make, on_refused=refused))
        if running is None:
            return terminal.exit_status(0)
        print_message("the guest has arrived")
        return await terminal.run(running)


def _refusal(error: MigrationError) -> str:
    """Return the line for a source, or another connection, that was refused."""
    # Late: saves 14 ms (the errors of every package) without an error.
    from pyvmm.cli.remedies import with_remedy

    cause = error.__cause__
    reason = with_remedy(cause) if isinstance(cause, UserError) else str(error)
    return f"a source was refused: {reason}"


class _TerminalRun(VmRun):
    """The run of one VM on this terminal; leaving `stack` releases everything it has opened."""

    def __init__(
        self,
        stack: AsyncExitStack,
        sockets: Sequence[Path],
        ports: Sequence[PortOption],
        incoming: MigrationListener | None = None,
        record: RecordOptions | None = None,
        announced: ListeningSocket | None = None,
    ) -> None:
        super().__init__(stack, sockets, ports, record, announced)
        self._incoming = incoming
        self._console: ConsoleIo | None = None
        self._port: LockedPort | None = None
        self._has_ports = False
        self._waiting: asyncio.Task[asyncio.Task[ExitResult]] | None = None

    def make(self, config: MachineConfig) -> VirtualMachine:
        """Create the VM of `config`, connected to the console; it does not run yet.

        One created before is closed: its source has failed.
        """
        if self._console is None:
            self._stack.callback(self._close_vm)
        else:
            self._close_vm()

        def act(action: Action) -> None:
            vm.end(ExitResult(ExitReason.ESCAPE if action is Action.QUIT else ExitReason.CRASH))

        def send_input(data: bytes) -> int:
            return vm.console_input(data) if self._port is None else self._port.offer(data)

        self._console = console = ConsoleIo(self._loop, 0, 1, send_input, act)
        vm = VirtualMachine(
            config,
            console_output=console.queue,
            console_throttle=console.throttle,
            on_console_room=console.send_pending,
            tracer=self.tracer,
        )
        self._port = None
        if config.console == "virtio":
            # Late: saves 3 ms with the serial console.
            from pyvmm.cli.console.ports import connect_terminal

            self._port = connect_terminal(vm, console)
        self.adopt(vm)
        self._has_ports = config.has_console_device
        return vm

    def _close_vm(self) -> None:
        self.close_vm()
        if self._console is not None:
            self._console.close()

    async def wait(
        self, migration: Coroutine[Any, Any, asyncio.Task[ExitResult]]
    ) -> asyncio.Task[ExitResult] | None:
        """Return the result of an incoming migration; None when a signal has ended the wait."""
        self._waiting = asyncio.create_task(migration)
        try:
            return await self._waiting
        except asyncio.CancelledError:
            if not self.caught:
                raise
            return None

    async def run(self, running: asyncio.Task[ExitResult] | None = None) -> int:
        """Run the VM to its end, unless it is `running` already; returns the exit status."""
        assert self.vm is not None
        assert self._console is not None
        await self.serve_sockets(self.vm)
        if running is None:
            self.signals.start()
        if self._port is not None:
            # Late: saves 3 ms with the serial console.
            from pyvmm.cli.console.ports import resize_to_window

            self.signals.handle(signal.SIGWINCH, partial(resize_to_window, self._port))
        self._stack.enter_context(self.terminal)
        self._console.start()
        result = await (running or self.vm.run())
        lost = await self._lost_output(self.vm, self._console, result)
        if lost and not self.caught:
            result = ExitResult(ExitReason.CRASH, lost)
        if result.exit_status:
            print_message(result.detail)
        return self.exit_status(result.exit_status)

    async def _lost_output(self, vm: VirtualMachine, console: ConsoleIo, result: ExitResult) -> str:
        """Wait until the guest's output is written; return the reason why it is not, or ""."""
        wait_s = OUTPUT_TIMEOUT_S if result.by_guest else HURRIED_OUTPUT_TIMEOUT_S

        def timeout_s() -> float:
            return HURRIED_OUTPUT_TIMEOUT_S if self.caught else wait_s

        drained = True
        if result.by_guest and self._has_ports:
            drained = await vm.ports.drain(timeout_s)
        written = await console.finish(timeout_s)
        if (error := console.output_error) is not None:
            return f"the guest's console output cannot be written: {error.strerror}"
        if not written:
            return "the end of the guest's console output was not read"
        return "" if drained else "the end of the output of the guest's ports was not read"

    def end_by_signal(self, signum: int) -> None:
        """End the VM, or the wait for it."""
        super().end_by_signal(signum)
        if self._waiting is not None:
            self._waiting.cancel()

    def release(self) -> None:
        """Also close the socket for an incoming migration."""
        super().release()
        if self._incoming is not None:
            self._incoming.close()


def _restore(snapshot: SnapshotFile, vm: VirtualMachine) -> None:
    """Restore `vm` from `snapshot`, with a progress bar."""
    # Late: saves 9 ms without --restore.
    from pyvmm.progress.reporter import show_progress
    from pyvmm.snapshot.restore import restore

    with show_progress() as progress, snapshot:
        progress.stage(f"restoring {snapshot.path}", snapshot.pages)
        restore(snapshot, vm, progress.advance)
