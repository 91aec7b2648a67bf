# SPDX-License-Identifier: Apache-2.0
"""An incoming migration: wait for a guest, create its machine, run it when it is complete.

    running = await accept_migration(listener, make)
    result = await running

The migration's thread receives; the machine is created, restored and started on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeVar

from pyvmm.machine.catalogue import CATALOGUE, part_kinds
from pyvmm.migration.destination import DestinationMigration
from pyvmm.migration.errors import IncomingMigrationFailed, MigrationError
from pyvmm.migration.link import MigrationLink
from pyvmm.migration.loop_calls import call_on_loop
from pyvmm.sockets.errors import ListenerClosed

if TYPE_CHECKING:
    from pyvmm.config import MachineConfig
    from pyvmm.machine.catalogue import CatalogueEntry
    from pyvmm.machine.exit_result import ExitResult
    from pyvmm.memory.ram import Ram
    from pyvmm.sockets.listener import MigrationListener
    from pyvmm.state.records import Record

_T = TypeVar("_T")


class IncomingVm(Protocol):
    """A VM that has neither been booted nor run.

    Threads: event loop.
    """

    @property
    def ram(self) -> Ram:
        """Its memory, which nothing has touched."""

    def prepare_parts(self) -> None:
        """Prepare for `restore_parts`. Raises UserError where KVM is too old."""

    def restore_parts(self, records: Sequence[Record]) -> None:
        """Restore everything but memory. Raises StateError."""

    def pause(self) -> None:
        """Keep the guest paused when it is run."""

    async def run(self) -> ExitResult:
        """Run the guest to its end."""


async def accept_migration(
    listener: MigrationListener,
    make: Callable[[MachineConfig], IncomingVm],
    devices: Sequence[CatalogueEntry] = CATALOGUE,
) -> asyncio.Task[ExitResult]:
    """Wait at `listener` for a guest; return the task of its `run` when it runs here.

    `make` creates a VM that may have `devices`, and that the caller closes. Raises `UserError` when
    the migration has failed: no guest runs here then. Cancellation has no effect once the guest
    runs.

    Threads: event loop.
    """
    loop = asyncio.get_running_loop()
    thread = ThreadPoolExecutor(1, "migration")
    target = _IncomingTarget(loop, make, devices)
    try:
        accepted = loop.run_in_executor(thread, listener.accept)
        link = MigrationLink(await _aborted_by(listener.close, accepted))
        work = loop.run_in_executor(thread, DestinationMigration(target, link).run)
        await _aborted_by(link.abort, work)
        link.close()
    except (MigrationError, ListenerClosed) as error:
        raise IncomingMigrationFailed(f"no guest has arrived: {error}") from error
    except asyncio.CancelledError:
        if target.running is None:
            raise
    finally:
        thread.shutdown(wait=False)
    assert target.running is not None
    return target.running


async def _aborted_by(abort: Callable[[], None], work: asyncio.Future[_T]) -> _T:
    """Wait for `work` of the migration's thread; if cancelled, `abort` it and wait for its end.

    Further cancellations, as by a second signal, do not end that wait.
    """
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        abort()
        while not work.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({work})
        work.exception()  # retrieved, so that asyncio does not log it
        raise


class _IncomingTarget:
    """Satisfies `pyvmm.migration.destination.Target`; acts on the event loop `loop`.

    Threads: migration; `running` event loop.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        make: Callable[[MachineConfig], IncomingVm],
        devices: Sequence[CatalogueEntry],
    ) -> None:
        self.kinds = part_kinds(devices)
        self._loop = loop
        self._make = make
        self._machine: IncomingVm | None = None
        self.running: asyncio.Task[ExitResult] | None = None

    def create_machine(self, config: MachineConfig) -> Ram:
        machine = self._machine = call_on_loop(self._loop, lambda: self._make(config))
        call_on_loop(self._loop, machine.prepare_parts)
        return machine.ram

    def restore(self, parts: Sequence[Record]) -> None:
        assert self._machine is not None
        machine = self._machine
        call_on_loop(self._loop, lambda: machine.restore_parts(parts))

    def start(self, *, running: bool) -> None:
        assert self._machine is not None
        machine = self._machine

        async def run() -> None:
            if not running:
                machine.pause()
            self.running = self._loop.create_task(machine.run())
            await asyncio.sleep(0)  # until its vCPUs are started

        asyncio.run_coroutine_threadsafe(run(), self._loop).result()
