# SPDX-License-Identifier: Apache-2.0
"""One machine on this terminal, from wherever it comes, to its end.

It is booted or goes on from a snapshot (`run_machine`), or it is on its way from another pyvmm
(`run_incoming`). `_TerminalRun` is what all of these have: the console, the signals that end it,
and the control sockets. They are bound before anything else, so that a path that cannot be used is
said while the guest can still be elsewhere, and served when there is a guest.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvmm.cli.asyncio_without_ssl import asyncio
from pyvmm.cli.console.terminal import Action, ConsoleIo, Terminal
from pyvmm.cli.errors import CommandError
from pyvmm.machine.exit_result import ExitReason, ExitResult
from pyvmm.trace.logging import LogTracer
from pyvmm.units import MIB, format_size
from pyvmm.vm import VirtualMachine

if TYPE_CHECKING:
    from pyvmm.config import MachineConfig
    from pyvmm.snapshot.reader import SnapshotFile
    from pyvmm.sockets.listener import MigrationListener
    from pyvmm.sockets.unix import UnixListener

END_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


async def run_machine(
    config: MachineConfig, sockets: Sequence[Path], snapshot: SnapshotFile | None = None
) -> int:
    """Run one machine to its end and return the exit status."""
    async with AsyncExitStack() as stack:
        place = _TerminalRun(stack, sockets)
        vm = place.make(config)
        if snapshot is None:
            vm.boot()
        else:
            _restore(snapshot, vm)
        return await place.run()


async def run_incoming(
    listener: MigrationListener, at_most_bytes: int, sockets: Sequence[Path]
) -> int:
    """Wait for a machine with no more RAM than that, then run it as `run_machine` does."""
    from pyvmm.migration.incoming import accept_migration

    async with AsyncExitStack() as stack:
        stack.callback(listener.close)
        place = _TerminalRun(stack, sockets)

        def make(config: MachineConfig) -> VirtualMachine:
            if config.ram_bytes > at_most_bytes:
                raise CommandError(
                    f"the guest has {format_size(config.ram_bytes)} of RAM, the destination takes"
                    f" at most {format_size(at_most_bytes)}",
                    f"start the destination with --memory {config.ram_bytes // MIB}M",
                )
            return place.make(config)

        place.heed_signals()
        _say(f"waiting for a guest at {listener.address}")
        running = await place.wait(accept_migration(listener, make))
        if running is None:
            return place.status(0)
        _say("the guest has arrived")
        return await place.run(running)


class _TerminalRun:
    """Where a machine can run: this terminal; everything is given back when `stack` is left."""

    def __init__(self, stack: AsyncExitStack, sockets: Sequence[Path]) -> None:
        self._stack = stack
        self._loop = asyncio.get_running_loop()
        self._vm: VirtualMachine | None = None
        self._waiting: asyncio.Task[asyncio.Task[ExitResult]] | None = None
        self._caught: list[int] = []
        self._listeners = [self._bind(path) for path in sockets]

    def _bind(self, path: Path) -> UnixListener:
        from pyvmm.sockets.lab_paths import listening_path
        from pyvmm.sockets.unix import UnixListener  # most guests have no control socket

        listener = UnixListener(listening_path(path), shown_as=path)
        self._stack.callback(listener.remove)
        return listener

    def make(self, config: MachineConfig) -> VirtualMachine:
        """Make the VM that is going to run on this terminal."""

        def act(action: Action) -> None:
            vm.end(ExitResult(ExitReason.ESCAPE if action is Action.QUIT else ExitReason.SIGNAL))

        def type_in(data: bytes) -> int:
            return vm.console_input(data)

        self._console = ConsoleIo(self._loop, 0, 1, type_in, act)
        self._stack.callback(self._console.close)
        vm = VirtualMachine(
            config,
            console_output=self._console.queue,
            console_throttle=self._console.throttle,
            on_console_room=self._console.send_pending,
            tracer=LogTracer(),
        )
        self._stack.callback(vm.close)
        self._vm = vm
        return vm

    async def wait(
        self, arriving: Coroutine[Any, Any, asyncio.Task[ExitResult]]
    ) -> asyncio.Task[ExitResult] | None:
        """Wait for a machine that has been made; None when a signal has ended the waiting."""
        self._waiting = asyncio.create_task(arriving)
        try:
            return await self._waiting
        except asyncio.CancelledError:
            if not self._caught:
                raise
            return None

    async def run(self, running: asyncio.Task[ExitResult] | None = None) -> int:
        """Run the machine, unless it is `running` already, to its end; returns the exit status."""
        assert self._vm is not None
        for listener in self._listeners:
            await self._serve(self._vm, listener)
        self.heed_signals()
        self._stack.enter_context(Terminal(0))
        self._console.start()
        outcome = await (running or self._vm.run())
        if outcome.exit_status:
            _say(outcome.detail)
        return self.status(outcome.exit_status)

    async def _serve(self, vm: VirtualMachine, listener: UnixListener) -> None:
        from pyvmm.qmp.server import ControlServer

        server = ControlServer(vm, listener)
        await server.start()
        self._stack.push_async_callback(server.close)

    def status(self, otherwise: int) -> int:
        """The exit status: that of the signal that has ended us, if one has."""
        return 128 + self._caught[0] if self._caught else otherwise

    def heed_signals(self) -> None:
        """From now on a signal ends what goes on here."""
        for signum in END_SIGNALS:
            self._loop.add_signal_handler(signum, self._end_by_signal, signum)

    def _end_by_signal(self, signum: int) -> None:
        self._caught.append(signum)
        if self._waiting is not None:
            self._waiting.cancel()
        if self._vm is not None:
            self._vm.end(ExitResult(ExitReason.SIGNAL))


def _restore(snapshot: SnapshotFile, vm: VirtualMachine) -> None:
    """Restore `vm` from `snapshot`, with a progress bar."""
    from pyvmm.progress.reporter import show_progress
    from pyvmm.snapshot.restore import restore

    with show_progress() as progress, snapshot:
        progress.stage(f"restoring {snapshot.path}", snapshot.pages)
        restore(snapshot, vm, progress.advance)


def _say(text: str) -> None:
    print(f"pyvmm: {text}", file=sys.stderr, flush=True)
