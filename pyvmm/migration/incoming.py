# SPDX-License-Identifier: Apache-2.0
"""An incoming migration: wait for a guest, create its machine, run it when it is complete.

    running = await accept_migration(listener, make)
    result = await running

The migration's thread receives; the machine is created, restored and started on the event loop.
`SourceCandidates` finds the source among all connections. A source that fails before it has sent
any state of its guest leaves nothing behind but a machine that has not run, so the wait continues;
one that fails later ends it.

The machine is created while the source waits. `pyvmm.migration.prepared_vm` does beforehand what
does not depend on the guest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from pyvmm.blocking.in_thread import Worker
from pyvmm.machine.catalogue import CATALOGUE, part_kinds
from pyvmm.migration.errors import IncomingMigrationFailed, MigrationError
from pyvmm.migration.loop_calls import call_on_loop
from pyvmm.migration.source_candidates import OnRefused, Source, SourceCandidates
from pyvmm.migration.timeouts import TIMEOUTS, Timeouts

if TYPE_CHECKING:
    from pyvmm.config import MachineConfig
    from pyvmm.machine.catalogue import CatalogueEntry
    from pyvmm.machine.exit_result import ExitResult
    from pyvmm.memory.ram import Ram
    from pyvmm.sockets.listener import MigrationListener
    from pyvmm.state.records import Record

_log = logging.getLogger(__name__)


def log_refused(error: MigrationError) -> None:
    """Log that a connection is not the source."""
    _log.warning("a source was refused: %s", error)


class IncomingVm(Protocol):
    """A VM that has neither been booted nor run.

    Threads: event loop.
    """

    @property
    def ram(self) -> Ram:
        """Its memory, which nothing has touched."""

    def prepare_incoming(self) -> None:
        """Prepare for `restore_parts` and `run`. Raises UserError where KVM is too old."""

    def restore_parts(self, records: Sequence[Record]) -> None:
        """Restore everything but memory. Raises StateError."""

    def pause(self) -> None:
        """Keep the guest paused when it is started."""

    def start(self) -> None:
        """Let the vCPUs enter the guest; `run` follows."""

    async def run(self) -> ExitResult:
        """Run the guest to its end."""


async def accept_migration(
    listener: MigrationListener,
    make: Callable[[MachineConfig], IncomingVm],
    devices: Sequence[CatalogueEntry] = CATALOGUE,
    *,
    on_refused: OnRefused = log_refused,
    timeouts: Timeouts = TIMEOUTS,
) -> asyncio.Task[ExitResult]:
    """Wait at `listener` for a guest; return the task of its `run` when it runs here.

    `make` creates a VM that may have `devices`, and that the caller closes. It is called again if a
    source fails before it has sent any state; the VM created before is not used any more then.
    `on_refused` is called for such a source, and for other connections that are not the source.
    Raises `UserError` when the migration has failed later: no guest runs here then; and
    `ThreadNotStarted` before the wait. Cancellation has no effect once the guest runs.

    Threads: event loop.
    """
    target = _IncomingTarget(asyncio.get_running_loop(), make, devices)
    receiver = Worker("migration")  # now: the source waits while a thread is started
    try:
        candidates = SourceCandidates(listener, target, timeouts, on_refused)
    except BaseException:
        receiver.end()
        raise
    try:
        while target.running is None:
            source = await candidates.next()
            try:
                await _receive(source, receiver, timeouts.end)
            except MigrationError as error:
                if candidates.closed:
                    raise
                candidates.refused(error)
    except MigrationError as error:
        raise IncomingMigrationFailed(f"no guest has arrived: {error}") from error
    except asyncio.CancelledError:
        if target.running is None:
            raise
    finally:
        candidates.close()
        receiver.end()
    return target.running


async def _receive(source: Source, receiver: Worker, end_s: float) -> None:
    """Receive the guest in the migration's thread; if cancelled, abort and wait `end_s` for it.

    Further cancellations, as by a second signal, do not end that wait.
    """

    def receive() -> None:
        with contextlib.closing(source.link):
            source.migration.run()

    work = receiver.call(receive)
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        source.migration.abort()
        ends_at = time.monotonic() + end_s
        while not work.done() and (left_s := ends_at - time.monotonic()) > 0:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({work}, timeout=left_s)
        if not work.cancel():
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
        def create() -> Ram:
            machine = self._machine = self._make(config)
            machine.prepare_incoming()
            return machine.ram

        return call_on_loop(self._loop, create)

    def restore(self, parts: Sequence[Record]) -> None:
        assert self._machine is not None
        machine = self._machine
        call_on_loop(self._loop, lambda: machine.restore_parts(parts))

    def start(self, *, running: bool) -> None:
        assert self._machine is not None
        machine = self._machine

        def start() -> None:
            if not running:
                machine.pause()
            machine.start()  # before its devices are served: the guest need not wait for that
            self.running = self._loop.create_task(machine.run())

        call_on_loop(self._loop, start)
