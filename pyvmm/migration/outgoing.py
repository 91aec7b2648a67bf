# SPDX-License-Identifier: Apache-2.0
"""Outgoing migrations of a running machine, on its event loop.

`Migrations` starts one at a time and keeps its progress and result. A thread copies;
`_OutgoingGuest` forwards its calls on the machine to the event loop.

The connection is made in a thread, too, because TLS files, name look-up and the handshake may
block. That thread cannot be interrupted, so nothing waits for it after its deadline, a cancellation
or the end of the machine: a connection that it makes later is closed.

The machine's status is "finish-migrate" during the switchover, and "postmigrate" when its guest
runs at the destination; it cannot be resumed from either. If the destination has not confirmed that
it runs the guest, the machine is "paused", so that the operator can resume it after checking that
the destination does not run it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pykvm import KvmError
from pyvmm.blocking.in_thread import call_in_thread
from pyvmm.errors import ThreadNotStarted, UserError
from pyvmm.migration.checksum_choice import AUTO
from pyvmm.migration.errors import Cancelled, MigrationError, SwitchoverUnconfirmed
from pyvmm.migration.link import MigrationLink
from pyvmm.migration.loop_calls import call_on_loop
from pyvmm.migration.progress import MigrationProgress, Settings
from pyvmm.migration.source import SourceMigration
from pyvmm.migration.timeouts import TIMEOUTS, Timeouts
from pyvmm.sockets.addresses import UnixAddress
from pyvmm.sockets.connect import Connector
from pyvmm_native.checksum import CHECKSUMS

if TYPE_CHECKING:
    from devices.ports import Tracer
    from pyvmm.machine.guest import GuestMachine
    from pyvmm.machine.run_state import RunState
    from pyvmm.memory.dirty_log import DirtyLog
    from pyvmm.memory.precopy import UnusedPages
    from pyvmm.sockets.addresses import Address
    from pyvmm.sockets.tls import Security
    from pyvmm.state.records import Record
    from pyvmm_native.memory import GuestMemory

MigrationStatus = Literal[
    "none", "setup", "active", "device", "cancelling", "cancelled", "completed", "failed"
]
"""Status of a migration, as in QEMU's MigrationStatus."""

_log = logging.getLogger(__name__)


class _Connection(NamedTuple):
    """The first connection to a destination, and what makes further ones."""

    link: MigrationLink
    connector: Connector

    @classmethod
    def make(cls, address: Address, security: Security) -> _Connection:
        """Connect. Raises `UserError`. Threads: migration."""
        connector = Connector(address, security)
        return cls(MigrationLink(connector.connect()), connector)

    def connect(self) -> MigrationLink:
        """Connect again. Raises `UserError`. Threads: stream sender."""
        return MigrationLink(self.connector.connect())

    def close(self) -> None:
        """Close the first connection."""
        self.link.close()


class MigrationRefused(Exception):
    """No migration can be started now; the message says why."""


class Migrations:
    """Migrations of `machine` to other hosts, one at a time.

    `status` is that of the active or last migration. Each round is an event of `tracer`.

    Threads: event loop.
    """

    def __init__(
        self, machine: GuestMachine, timeouts: Timeouts = TIMEOUTS, tracer: Tracer | None = None
    ) -> None:
        self._machine = machine
        self._tracer = tracer
        self._timeouts = timeouts
        self._task: asyncio.Task[None] | None = None
        self._setup: asyncio.Task[_Connection] | None = None
        self._source: SourceMigration | None = None  # once there is a connection
        self._cancelled = False
        self._ended = False
        self.settings = Settings()
        """Settings of migrations that are started from now on."""
        self._limits: dict[str, Any] = {}  # changed since this one was started
        self.status: MigrationStatus = "none"
        self.progress = MigrationProgress()
        """Counts and times of the active or last migration."""
        self.error = ""
        """The reason if the last migration failed."""

    @property
    def active(self) -> bool:
        """A migration has been started and has not ended."""
        return self._task is not None and not self._task.done()

    def start(self, address: Address, security: Security, settings: Settings) -> None:
        """Start to migrate to the destination at `address`; `status` has progress and result.

        Raises `MigrationRefused`. An address that cannot be reached is an `error` of the migration,
        as finding out may take a name server.
        """
        if self.active:
            raise MigrationRefused("There's a migration process in progress")
        if self._machine.saving:
            raise MigrationRefused("There is a snapshot in process, please wait")
        if self._ended or self._machine.status not in ("running", "paused"):
            raise MigrationRefused("The guest has ended or has migrated")
        if settings.checksum not in (AUTO, *CHECKSUMS):
            raise MigrationRefused(f"This pyvmm was built without the checksum {settings.checksum}")
        if settings.checksum == "none" and not isinstance(address, UnixAddress):
            raise MigrationRefused("Pages without a checksum are sent over unix sockets only")
        self.progress, self.error = MigrationProgress(tracer=self._tracer), ""
        self._source, self._cancelled, self._limits = None, False, {}
        self._set_status("setup")
        loop = asyncio.get_running_loop()
        guest = _OutgoingGuest(self._machine, loop, lambda: self._set_status("device"))
        self._setup = loop.create_task(self._connect(address, security))
        self._task = loop.create_task(self._migrate(guest, self._setup, settings))

    def change(self, **limits: Any) -> None:
        """Change settings of the active migration and of those to come."""
        self.settings = replace(self.settings, **limits)
        self._limits |= limits
        if self._source is not None:
            self._source.settings = replace(self._source.settings, **limits)

    def cancel(self) -> None:
        """Cancel the active migration, if it has not been committed."""
        if not self.active or self.status == "cancelling":
            return
        if self._source is not None:
            if not self._source.cancel():
                return
        elif self._setup is not None:
            self._setup.cancel()
        self._cancelled = True
        self._set_status("cancelling")

    async def end(self) -> None:
        """Abort the active migration, as the machine has ended, and wait for its end.

        The wait is limited: a thread that is left has no effect on the machine.
        """
        self._ended = True
        if self._task is not None:
            if self._source is not None:
                self._source.abort()
            elif self._setup is not None:
                self._setup.cancel()
            await asyncio.wait({self._task}, timeout=self._timeouts.end)

    async def _connect(self, address: Address, security: Security) -> _Connection:
        """Return a connection to the destination, when memory is complete."""
        await self._machine.memory_loaded()  # missing pages would look like zeros
        self._machine.prepare_parts()
        limit_s = self._timeouts.connection
        connecting = call_in_thread(
            "migration", partial(_Connection.make, address, security), discard=_Connection.close
        )
        try:
            async with asyncio.timeout(limit_s):
                return await connecting
        except TimeoutError:
            raise MigrationError(
                f"no destination can be reached at {address}: no connection within {limit_s:g} s"
            ) from None

    async def _migrate(
        self, guest: _OutgoingGuest, setup: asyncio.Task[_Connection], settings: Settings
    ) -> None:
        status: MigrationStatus = "failed"
        try:
            await self._move(guest, await setup, settings)
            status = "completed"
        except Cancelled:
            status = "cancelled"
        except asyncio.CancelledError:
            if self._ended:
                self.error = "the guest has ended"
            elif self._cancelled:
                status = "cancelled"
            else:
                raise
        except (MigrationError, UserError) as error:
            self.error = str(error)
        except KvmError as error:
            self.error = f"a request to KVM has failed: {error}"
        except Exception as error:
            _log.exception("a migration failed")
            self.error = f"a bug of pyvmm: {error!r}"
        self.progress.ended_at = time.monotonic()
        self._set_status(status)

    async def _move(
        self, guest: _OutgoingGuest, connection: _Connection, settings: Settings
    ) -> None:
        link = connection.link
        if self._ended or self._cancelled:
            link.close()
            raise Cancelled("the migration was cancelled")
        settings = replace(settings, **self._limits)
        source = SourceMigration(
            guest, link, settings, self.progress, self._timeouts, connection.connect
        )
        self._source = source
        self._set_status("active")
        try:
            work = call_in_thread("migration", partial(_run_and_close, source, link))
        except ThreadNotStarted:
            link.close()
            raise
        try:
            await work
        except SwitchoverUnconfirmed as error:
            guest.finish("paused")
            raise MigrationError(
                f"{error}; it is paused here and complete: resume it here only if it does not run"
                " at the destination"
            ) from error
        guest.finish("postmigrate")

    def _set_status(self, status: MigrationStatus) -> None:
        self.status = status
        self._machine.announce("MIGRATION", {"status": status})


def _run_and_close(source: SourceMigration, link: MigrationLink) -> None:
    """Run the migration, then close its link. Threads: migration."""
    with closing(link):
        source.run()


class _OutgoingGuest:
    """Satisfies `pyvmm.migration.source.SourceGuest`; acts on the event loop `loop`.

    `on_stop` is called there when the guest is paused for the switchover.

    Threads: migration; `finish` the event loop.
    """

    def __init__(
        self, machine: GuestMachine, loop: asyncio.AbstractEventLoop, on_stop: Callable[[], None]
    ) -> None:
        self._machine = machine
        self._loop = loop
        self._on_stop = on_stop
        self._quiescent = ExitStack()
        self._was_running = False
        self.config = machine.config

    @property
    def memory(self) -> GuestMemory:
        return self._machine.ram.memory

    def log_dirty_pages(self) -> AbstractContextManager[DirtyLog]:
        return self._machine.log_dirty_pages()

    def request_unused_pages(self, timeout_s: float) -> Future[UnusedPages]:
        query = self._machine.unused_pages(timeout_s)
        return asyncio.run_coroutine_threadsafe(query, self._loop)

    def throttle(self, percentage: int) -> None:
        call_on_loop(self._loop, lambda: self._machine.throttle(percentage))

    def stop(self) -> bool:
        return call_on_loop(self._loop, self._stop)

    def save_parts(self) -> Sequence[Record]:
        return call_on_loop(self._loop, self._machine.save_parts)

    def resume(self) -> None:
        call_on_loop(self._loop, self._resume)

    def finish(self, status: RunState) -> None:
        """Set the machine's status after the switchover. Threads: event loop."""
        self._quiescent.close()
        if self._machine.status == "finish-migrate":
            self._machine.set_status(status)

    def _stop(self) -> bool:
        machine = self._machine
        if machine.status not in ("running", "paused"):
            raise MigrationError("the guest has ended")
        self._was_running = machine.status == "running"
        if self._was_running:
            machine.pause()
        machine.set_status("finish-migrate")
        self._quiescent.enter_context(machine.quiescent())
        self._on_stop()
        return self._was_running

    def _resume(self) -> None:
        self._quiescent.close()
        if self._machine.status != "finish-migrate":
            return  # the machine has ended
        if self._was_running:
            self._machine.resume()
        else:
            self._machine.set_status("paused")
