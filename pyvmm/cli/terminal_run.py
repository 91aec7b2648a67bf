# SPDX-License-Identifier: Apache-2.0
"""Serve one VM with its console on this terminal, to its end.

The VM's machine runs already (`serve_booted`), is restored from a snapshot (`run_restored`), or is
received from another pyvmm (`run_incoming`). `_TerminalRun` has what these share: the console, and
the wait for a source.
"""

from __future__ import annotations

import signal
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvmm.blocking.event_loop import run_on_new_loop
from pyvmm.cli.asyncio_without_ssl import asyncio
from pyvmm.cli.console.terminal import Action, ConsoleIo
from pyvmm.cli.errors import CommandError
from pyvmm.cli.vm_run import VmRun
from pyvmm.cli.vm_start import VmStart
from pyvmm.console.writer import ConsoleWriter
from pyvmm.errors import UserError
from pyvmm.machine.exit_result import ExitReason, ExitResult
from pyvmm.machine.machine import Machine
from pyvmm.memory.heap import free_unused_heap
from pyvmm.standard_streams.text import print_message
from pyvmm.units import MIB, format_size
from pyvmm.vm import VirtualMachine

if TYPE_CHECKING:
    from pyvmm.cli.console.ports import PortOption
    from pyvmm.cli.end_signals import EndSignals
    from pyvmm.cli.record_options import RecordOptions
    from pyvmm.config import HugePages, MachineConfig
    from pyvmm.console.ports import LockedPort
    from pyvmm.migration.errors import MigrationError
    from pyvmm.migration.prepared_vm import PreparedVm
    from pyvmm.runtime_directory.announcement import ListeningSocket
    from pyvmm.snapshot.reader import SnapshotFile
    from pyvmm.sockets.listener import MigrationListener

OUTPUT_TIMEOUT_S = 20.0
"""Longest wait for the reader of the console's output after the guest has ended."""
HURRIED_OUTPUT_TIMEOUT_S = 1.0
"""The same after a signal, `quit`, the escape key or a crash."""


def serve_booted(start: VmStart, writer: ConsoleWriter) -> int:
    """Serve the VM that `start` has booted, whose console `writer` writes; returns the exit status.

    The VM runs to its end.
    """

    async def serve() -> int:
        async with AsyncExitStack() as stack:
            run = _TerminalRun(stack, start)
            run.connect(start.take_machine(), writer)
            return await run.run()

    return run_on_new_loop(serve)


def run_restored(
    config: MachineConfig,
    snapshot: SnapshotFile,
    sockets: Sequence[Path],
    ports: Sequence[PortOption] = (),
    record: RecordOptions | None = None,
    announced: ListeningSocket | None = None,
) -> int:
    """Restore a VM with `config` from `snapshot` and run it; returns the exit status."""

    async def restore_and_run(start: VmStart) -> int:
        async with AsyncExitStack() as stack:
            run = _TerminalRun(stack, start)
            try:
                _restore(snapshot, run.make(config), start.signals)
            except _RestoreInterrupted:
                return 128 + start.signals.received
            start.keep_recording()
            return await run.run()

    with ExitStack() as stack:
        start = VmStart(stack, sockets, ports, record, announced)
        return run_on_new_loop(lambda: restore_and_run(start))


def run_incoming(
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
    with ExitStack() as stack:
        stack.callback(listener.close)
        start = VmStart(stack, sockets, ports, record, announced)
        return run_on_new_loop(lambda: _wait_and_run(start, listener, max_ram_bytes, hugepages))


async def _wait_and_run(
    start: VmStart, listener: MigrationListener, max_ram_bytes: int, hugepages: HugePages
) -> int:
    # Late: saves 22 ms where no migration comes in.
    from pyvmm.migration.incoming import accept_migration
    from pyvmm.migration.prepared_vm import prepare_vm

    async with AsyncExitStack() as stack:
        prepared = prepare_vm()
        stack.callback(prepared.close)
        terminal = _TerminalRun(stack, start)
        start.releasing.add(listener.close)  # after the terminal: a dead file system may hang it

        def make(config: MachineConfig) -> VirtualMachine:
            if config.ram_bytes > max_ram_bytes:
                raise CommandError(
                    f"the guest has {format_size(config.ram_bytes)} of RAM, the destination takes"
                    f" at most {format_size(max_ram_bytes)}",
                    f"start the destination with --memory {config.ram_bytes // MIB}M",
                )
            return terminal.make(config.changed(hugepages=hugepages), prepared)

        start.keep_recording()
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
    """The run of one VM on this terminal; leaving `stack` ends it."""

    def __init__(self, stack: AsyncExitStack, start: VmStart) -> None:
        super().__init__(stack, start)
        self._console: ConsoleIo | None = None
        self._port: LockedPort | None = None
        self._has_ports = False
        self._waiting: asyncio.Task[asyncio.Task[ExitResult]] | None = None
        stack.callback(self._close_vm)

    def make(self, config: MachineConfig, prepared: PreparedVm | None = None) -> VirtualMachine:
        """Create the VM of `config`, connected to the console; it does not run yet.

        That of KVM is the `prepared` one, if it is still there. One created before is closed: its
        source has failed.
        """
        self._close_vm()
        writer = ConsoleWriter(1)
        try:
            with nullcontext() if prepared is None else prepared.taken(config) as setup:
                platform = self._start.create_platform(config, writer, setup)
            machine = Machine(platform)
        except BaseException:
            writer.close(0)  # else each source that is refused leaves its thread
            raise
        return self.connect(machine, writer)

    def connect(self, machine: Machine, writer: ConsoleWriter) -> VirtualMachine:
        """Return the VM of `machine`, whose output `writer` writes, with this terminal's input."""

        def act(action: Action) -> None:
            vm.end(ExitResult(ExitReason.ESCAPE if action is Action.QUIT else ExitReason.CRASH))

        def send_input(data: bytes) -> int:
            return vm.console_input(data) if self._port is None else self._port.offer(data)

        self._console = console = ConsoleIo(self._loop, 0, writer, send_input, act)
        vm = VirtualMachine(machine, on_console_room=console.send_pending)
        self.adopt(vm)
        self._port = None
        if vm.config.console == "virtio":
            # Late: saves 3 ms with the serial console.
            from pyvmm.cli.console.ports import connect_terminal

            self._port = connect_terminal(vm, console)
        self._has_ports = vm.config.has_console_device
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
        """Run the VM to its end, or wait for it if it is `running`; returns the exit status."""
        assert self.vm is not None
        assert self._console is not None
        await self.serve_sockets(self.vm)
        free_unused_heap()
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


class _RestoreInterrupted(Exception):
    """A signal has ended the process's work."""


def _restore(snapshot: SnapshotFile, vm: VirtualMachine, signals: EndSignals) -> None:
    """Restore `vm` from `snapshot`, with a progress bar; `_RestoreInterrupted` after a signal."""
    # Late: saves 9 ms without --restore.
    from pyvmm.progress.reporter import show_progress
    from pyvmm.snapshot.restore import restore

    with show_progress() as progress, snapshot:
        progress.stage(f"restoring {snapshot.path}", snapshot.pages)

        def advance(pages: int) -> None:
            progress.advance(pages)
            if signals.received:
                raise _RestoreInterrupted

        restore(snapshot, vm, advance)
