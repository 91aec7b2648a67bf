# SPDX-License-Identifier: Apache-2.0
"""Take a snapshot of a machine, on its event loop.

The order of the steps matters:

1. The dirty log is switched on.
2. The guest is asked which pages it does not use; if it does not answer, that costs the time-out.
3. If the guest is to continue afterwards, pages are copied to the file while it runs, and what it
   changes meanwhile is copied again, as long as each round takes at most half the time of the one
   before.
4. The guest is paused. Notifications that it sent before are served; from here on nothing touches
   its memory. The state of vCPUs and devices is saved, and the rest of memory is copied.
5. The guest continues if the request says so. After a failure it always continues.
6. The file is synced and takes its name.

A thread of its own copies and does everything else that accesses the file, so the control socket
stays responsive whatever the file system does. Each step has a deadline; a thread that hangs in a
system call is left behind and stops when that returns. `status` describes the last snapshot,
running or not. When the machine ends, a running snapshot fails.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pykvm import KvmError
from pyvmm.errors import UserError
from pyvmm.memory.precopy import UnusedPages
from pyvmm.snapshot.copier import Copier
from pyvmm.snapshot.errors import SnapshotNotWritten
from pyvmm.snapshot.file_thread import SnapshotFileThread
from pyvmm.snapshot.format import MAX_ROUNDS
from pyvmm.snapshot.report import PageReport
from pyvmm.snapshot.timeouts import SNAPSHOT_TIMEOUTS, SnapshotTimeouts
from pyvmm.snapshot.writer import SnapshotWriter
from pyvmm.state.config_record import config_record
from pyvmm_native import PAGE_BYTES

if TYPE_CHECKING:
    from pyvmm.machine.guest import GuestMachine
    from pyvmm.memory.dirty_log import DirtyLog

_log = logging.getLogger(__name__)
SHORT_ROUND_S = 0.05
"""After a round this short, the rest is copied with the guest paused."""


@dataclass(frozen=True)
class SnapshotRequest:
    """A request to take a snapshot."""

    path: Path
    keep_running: bool = True
    """Resume the guest afterwards if it ran before; otherwise it stays paused."""
    ask_unused: bool = True
    """Ask the guest which pages it does not use."""
    timeout_s: float = 10.0
    """Time-out of that request."""
    force: bool = False
    """Replace a regular file at `path` that is not a snapshot."""


@dataclass(frozen=True)
class SnapshotStatus:
    """Progress or result of a snapshot; times in seconds.

    While it is active, pages are counted as often as they are copied; when it is complete, only
    those in the file.
    """

    status: Literal["none", "active", "completed", "failed"] = "none"
    completed_pages: int = 0
    total_pages: int = 0
    error: str = ""
    file_bytes: int = 0
    seconds: float = 0.0
    stopped_seconds: float = 0.0
    """Downtime: the time for which the guest was paused."""
    report: PageReport | None = None
    """Counts of pages by their treatment; None until the snapshot is complete."""


class SnapshotActive(Exception):
    """A snapshot is already being taken."""


class MigrationActive(Exception):
    """The guest is being sent to another host, which logs its changes and may pause it."""


class MachineEnded(Exception):
    """The machine has ended."""


class Snapshots:
    """Takes snapshots of `machine`, one at a time.

    Threads: event loop.
    """

    def __init__(
        self, machine: GuestMachine, timeouts: SnapshotTimeouts = SNAPSHOT_TIMEOUTS
    ) -> None:
        self._machine = machine
        self._timeouts = timeouts
        self._task: asyncio.Task[None] | None = None
        self._closed = threading.Event()
        self.status = SnapshotStatus()
        """Progress or result of the active or last snapshot."""

    @property
    def active(self) -> bool:
        """A snapshot is being taken; the guest may be paused for it."""
        return self.status.status == "active"

    def start(self, request: SnapshotRequest) -> None:
        """Begin to take a snapshot, whose progress and result are in `status`.

        Raises `SnapshotActive`, `MigrationActive` or `MachineEnded`.
        """
        if self.active:
            raise SnapshotActive
        if self._machine.migrating:
            raise MigrationActive
        self._check_machine()
        self.status = SnapshotStatus("active")
        self._task = asyncio.get_running_loop().create_task(self._take(request))

    async def end(self) -> None:
        """Abort an active snapshot, as the machine has ended, and wait until its file is closed.

        The wait is limited.
        """
        self._closed.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _take(self, request: SnapshotRequest) -> None:
        begin = time.monotonic()
        try:
            await self._save(request)
            self.status = replace(self.status, status="completed", seconds=time.monotonic() - begin)
        except (MachineEnded, asyncio.CancelledError):
            self._fail("the guest has ended")
        except UserError as error:
            self._fail(str(error))
        except KvmError as error:
            self._fail(f"a request to KVM has failed: {error}")
        except Exception as error:
            _log.exception("a snapshot failed")
            self._fail(f"a bug of pyvmm: {error!r}")

    def _fail(self, reason: str) -> None:
        self.status = SnapshotStatus("failed", error=reason)

    async def _save(self, request: SnapshotRequest) -> None:
        machine = self._machine
        await machine.memory_loaded()
        async with self._file(request) as file:
            with ExitStack() as logging_on:
                machine.prepare_parts()
                log = logging_on.enter_context(machine.log_dirty_pages())
                timeout_s = request.timeout_s if request.ask_unused else 0.0
                unused = await machine.unused_pages(timeout_s)
                copier = await file.worker.call(lambda: self._copier(log, file, unused))
                if request.keep_running and machine.status == "running":
                    await self._precopy(file, copier)
                self._check_machine()
                with self._paused() as resume:
                    # The disk may be busy, and the guest is about to continue.
                    file.writer.write_behind = not request.keep_running
                    parts = machine.save_parts()
                    await self._copy(file, copier, copier.copy_last_round)
                    ballooned_bytes = machine.config.ram_bytes - machine.balloon_actual_bytes
                    report = copier.report(ballooned_bytes // PAGE_BYTES)
                    if request.keep_running:
                        resume()
                        logging_on.close()  # each page written costs the guest a fault
                    records = [config_record(machine.config), report.record(), *parts]
                    size = await file.finish(records)
        self.status = replace(
            self.status,
            completed_pages=report.stored,
            total_pages=report.stored,
            file_bytes=size,
            report=report,
        )

    @asynccontextmanager
    async def _file(self, request: SnapshotRequest) -> AsyncIterator[SnapshotFileThread]:
        """Open the file for the length of the block."""
        writer = SnapshotWriter(request.path, self._machine.ram.memory, force=request.force)
        file = SnapshotFileThread(writer, request.path, self._timeouts)
        try:
            await file.open()
            yield file
        finally:
            await file.close()

    def _copier(self, log: DirtyLog, file: SnapshotFileThread, unused: UnusedPages) -> Copier:
        def on_pages(pages: int) -> None:
            if file.abandoned.is_set():
                raise SnapshotNotWritten("the snapshot was abandoned")
            self._pages_copied(pages)

        return Copier(self._machine.ram.memory, log, file.writer, unused, on_pages)

    async def _precopy(self, file: SnapshotFileThread, copier: Copier) -> None:
        """Copy while the guest runs, until rounds become little shorter."""
        took_s = math.inf
        for _ in range(MAX_ROUNDS - 1):
            before_s, begin = took_s, time.monotonic()
            await self._copy(file, copier, copier.copy_round)
            took_s = time.monotonic() - begin
            if took_s < SHORT_ROUND_S or took_s > before_s / 2:
                break

    async def _copy(
        self, file: SnapshotFileThread, copier: Copier, one_round: Callable[[], None]
    ) -> None:
        done = self.status.completed_pages
        self.status = replace(self.status, total_pages=done + copier.todo.pages)
        await file.write(one_round, lambda: self.status.completed_pages)

    @contextmanager
    def _paused(self) -> Iterator[Callable[[], None]]:
        """Keep the guest paused until the yielded function is called, or the block raises."""
        machine, begin = self._machine, time.monotonic()
        was_running = machine.status == "running"

        def resume() -> None:
            nonlocal was_running
            paused.close()
            if was_running and machine.status == "paused":
                machine.resume()
            was_running = False

        with ExitStack() as paused:
            paused.callback(self._note_downtime, begin)
            if was_running:
                machine.pause()
            paused.enter_context(machine.quiescent())
            try:
                yield resume
            except BaseException:
                resume()
                raise

    def _note_downtime(self, begin: float) -> None:
        self.status = replace(self.status, stopped_seconds=time.monotonic() - begin)

    def _pages_copied(self, pages: int) -> None:
        """Note progress. Threads: snapshot."""
        if self._closed.is_set():
            raise MachineEnded
        status = self.status
        self.status = replace(status, completed_pages=status.completed_pages + pages)

    def _check_machine(self) -> None:
        if self._closed.is_set() or self._machine.status not in ("running", "paused"):
            raise MachineEnded
