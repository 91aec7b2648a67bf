# SPDX-License-Identifier: Apache-2.0
"""A guest of this process, driven by a script: its VM, its console, its balloon.

    async with guest_session(config) as guest:
        await guest.wait_for_user_space()
        await guest.command("alloc 64")
        result = await guest.resize_balloon(pages)
        exit_result = await guest.wait_for_exit()

Every wait for the console or the balloon ends as soon as the VM does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyvmm.config import MachineConfig
from pyvmm.harness.console_guest import POLL_S, ConsoleGuest
from pyvmm.harness.scripted_console import ScriptedConsole
from pyvmm.machine.exit_result import ExitResult
from pyvmm.trace.logging import LogTracer
from pyvmm.vm import VirtualMachine
from pyvmm_native import PAGE_BYTES

if TYPE_CHECKING:
    from pyvmm.snapshot.reader import SnapshotFile
    from pyvmm.sockets.listener import MigrationListener

BALLOON_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class ResizeResult:
    """The cost of a resize, from setting the target until the driver reported that size."""

    seconds: float
    pages: int
    requests: int


class GuestSession(ConsoleGuest[ExitResult]):
    """A running VM, `vm`, and the far end of its serial line, `console`."""

    def __init__(
        self,
        vm: VirtualMachine,
        console: ScriptedConsole,
        running: asyncio.Task[ExitResult] | None = None,
    ) -> None:
        super().__init__(console, running or asyncio.create_task(vm.run()))
        self.vm = vm

    async def resize_balloon(self, target_pages: int) -> ResizeResult:
        """Set the balloon's target size, in 4 KiB pages, and wait until the driver reports it.

        Raises GuestExited, and TimeoutError after `BALLOON_TIMEOUT_S`.
        """
        before = self._traffic()
        begin = time.monotonic()
        self.vm.set_balloon_target(self.vm.ram_bytes - target_pages * PAGE_BYTES)
        await self.while_running(self._reach(target_pages))
        seconds = time.monotonic() - begin
        pages, requests = (new - old for new, old in zip(self._traffic(), before, strict=True))
        return ResizeResult(seconds, pages, requests)

    async def _reach(self, target_pages: int) -> None:
        async with asyncio.timeout(BALLOON_TIMEOUT_S):
            while self.vm.balloon.actual != target_pages:
                await asyncio.sleep(POLL_S)

    def _traffic(self) -> tuple[int, int]:
        counters = self.vm.balloon.counters
        inflate, deflate = counters.inflate, counters.deflate
        return inflate.pages + deflate.pages, inflate.requests + deflate.requests

    async def close(self) -> None:
        """End the VM if it still runs, and release its resources."""
        self.vm.quit()
        await asyncio.wait({self._running})
        self.vm.close()


@asynccontextmanager
async def guest_session(
    config: MachineConfig, snapshot: SnapshotFile | None = None
) -> AsyncIterator[GuestSession]:
    """Run the VM of `config` for the length of the block; it is booted, and closed at the end.

    With `snapshot`, whose `config` it must be, the VM is restored and resumed. Raises `UserError`.
    """
    console = ScriptedConsole()
    vm = _create_vm(config, console)
    try:
        if snapshot is None:
            vm.boot()
        else:
            # Late: saves 5 ms in scripts that boot.
            from pyvmm.snapshot.restore import restore

            restore(snapshot, vm)
    except BaseException:
        vm.close()
        raise
    console.connect(vm.console_input)
    session = GuestSession(vm, console)
    try:
        yield session
    finally:
        await session.close()


@asynccontextmanager
async def incoming_session(listener: MigrationListener) -> AsyncIterator[GuestSession]:
    """Wait for a VM that another pyvmm sends to `listener`, and run it as `guest_session` does.

    Raises `UserError` when the migration fails.
    """
    # Late: saves 13 ms (ssl) in scripts that boot.
    from pyvmm.migration.incoming import accept_migration

    console = ScriptedConsole()
    created: list[VirtualMachine] = []

    def make(config: MachineConfig) -> VirtualMachine:
        created.append(_create_vm(config, console))
        return created[0]

    try:
        running = await accept_migration(listener, make)
    except BaseException:
        for vm in created:
            vm.close()
        raise
    console.connect(created[0].console_input)
    session = GuestSession(created[0], console, running)
    try:
        yield session
    finally:
        await session.close()


def _create_vm(config: MachineConfig, console: ScriptedConsole) -> VirtualMachine:
    return VirtualMachine(
        config,
        console_output=console.queue,
        tracer=LogTracer(),
        on_console_room=console.send_pending,
    )
