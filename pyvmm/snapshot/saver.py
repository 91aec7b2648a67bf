# SPDX-License-Identifier: Apache-2.0
"""Taking a snapshot of a running machine, on its event loop.

In this order, because each step leans on the one before:

1. Changes to memory begin to be logged.
2. The guest is asked which pages it does not use; it may not answer, which costs the time-out.
3. If it is to go on afterwards, pages are copied to the file while it runs, and what it has changed
   meanwhile is copied again, for as long as each round is done in half the time of the one before.
4. The guest stops. Notifications that it sent before are served, and from here on nothing touches
   its memory. The parts of the machine write themselves down, and the rest is copied.
5. The guest goes on, or stays as it is. After a failure it always goes on.
6. The file is synced and takes its name.

A thread of its own copies, so that the control socket stays responsive. A snapshot that was begun
is shown by `status` until the next one. The end of the machine ends it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from pyvmm.errors import UserError
from pyvmm.memory.page_selection import UnusedPages, ask_unused
from pyvmm.snapshot.copier import Copier
from pyvmm.snapshot.format import MAX_ROUNDS
from pyvmm.snapshot.report import PageReport, config_record
from pyvmm.snapshot.writer import SnapshotWriter
from pyvmm_native.runs import PageRuns

if TYPE_CHECKING:
    from devices.balloon.device import BalloonDevice
    from devices.ports import GuestRam
    from pyvmm.balloon.free_page_hints import FreePageHints
    from pyvmm.balloon.misc_requests import MiscRequests
    from pyvmm.config import MachineConfig
    from pyvmm.memory.dirty_log import DirtyLog
    from pyvmm.qmp.vm_control import Status
    from pyvmm.state.records import Record

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
SHORT_S = 0.05
"""What a round is copied in that is not worth another one before the guest stops."""


class SnapshotMachine(Protocol):
    """The machine, as far as a snapshot needs it. Everything is called on its event loop."""

    @property
    def config(self) -> MachineConfig:
        """What it was made from."""

    @property
    def ram(self) -> GuestRam:
        """Its memory."""

    @property
    def balloon(self) -> BalloonDevice:
        """Its balloon."""

    @property
    def misc_requests(self) -> MiscRequests:
        """What its guest can be asked."""

    @property
    def free_page_hints(self) -> FreePageHints:
        """What its guest does without, if it is asked to."""

    @property
    def status(self) -> Status:
        """Whether it runs."""

    def pause(self) -> None:
        """Stop the guest."""

    def resume(self) -> None:
        """Let it go on."""

    async def memory_loaded(self) -> None:
        """Wait until all of its memory is there, if it is still being restored."""

    def log_dirty_pages(self) -> AbstractContextManager[DirtyLog]:
        """Have all changes to memory logged for the length of a block."""

    def quiescent(self) -> AbstractContextManager[None]:
        """Keep devices from touching the memory of the stopped guest for the length of a block."""

    def prepare_parts(self) -> None:
        """Have `save_parts` take no longer than it must."""

    def save_parts(self) -> Sequence[Record]:
        """Everything but memory, of the stopped guest."""


@dataclass(frozen=True)
class SnapshotRequest:
    """What somebody wants of a snapshot."""

    path: Path
    keep_running: bool = True
    """Afterwards the guest goes on if it ran before; otherwise it stays stopped."""
    ask_unused: bool = True
    timeout_s: float = 10.0
    """How long the guest may take to say which pages it does not use."""


@dataclass(frozen=True)
class SnapshotStatus:
    """How far a snapshot is; times in seconds.

    Pages are those to be looked at, as often as they are; those in the file when it is complete.
    """

    status: Literal["none", "active", "completed", "failed"] = "none"
    completed_pages: int = 0
    total_pages: int = 0
    error: str = ""
    file_bytes: int = 0
    seconds: float = 0.0
    stopped_seconds: float = 0.0
    """How long the guest stood still."""
    report: PageReport | None = None


class Busy(Exception):
    """A snapshot is being taken already."""


class Ended(Exception):
    """The machine has ended."""


class Snapshots:
    """Takes snapshots of `machine`, one at a time; made on its event loop."""

    def __init__(self, machine: SnapshotMachine) -> None:
        self._machine = machine
        self._task: asyncio.Task[None] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._closed = threading.Event()
        self.status = SnapshotStatus()

    @property
    def active(self) -> bool:
        """A snapshot is being taken; the guest may stand still for it."""
        return self.status.status == "active"

    def start(self, wish: SnapshotRequest) -> None:
        """Begin to take a snapshot; `status` tells the rest. Raises `Busy` or `Ended`."""
        if self.active:
            raise Busy
        self._check_alive()
        self.status = SnapshotStatus("active")
        self._task = asyncio.get_running_loop().create_task(self._take(wish))

    async def end(self) -> None:
        """The machine has ended: give up what is not complete, and wait for that."""
        self._closed.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._thread is not None:
            self._thread.shutdown(wait=True)

    async def _take(self, wish: SnapshotRequest) -> None:
        begin = time.monotonic()
        self._thread = ThreadPoolExecutor(1, "snapshot")
        try:
            await self._save(wish)
            self.status = replace(self.status, status="completed", seconds=time.monotonic() - begin)
        except (Ended, asyncio.CancelledError):
            self._fail("the guest has ended")
        except UserError as error:
            self._fail(str(error))
        except Exception as error:
            _log.exception("a snapshot failed")
            self._fail(f"a bug of pyvmm: {error!r}")
        finally:
            self._thread.shutdown(wait=False)

    def _fail(self, why: str) -> None:
        self.status = SnapshotStatus("failed", error=why)

    async def _save(self, wish: SnapshotRequest) -> None:
        machine = self._machine
        await machine.memory_loaded()
        machine.prepare_parts()
        memory = machine.ram.memory
        with SnapshotWriter(wish.path, memory) as file, ExitStack() as logging_on:
            log = logging_on.enter_context(machine.log_dirty_pages())
            unused = UnusedPages(PageRuns(), "not asked, as was wished")
            if wish.ask_unused:
                unused = await ask_unused(
                    machine.balloon,
                    machine.misc_requests,
                    machine.free_page_hints,
                    wish.timeout_s,
                )
            copier = await self._in_thread(
                lambda: Copier(memory, log, file, unused, self._looked_at)
            )
            if wish.keep_running and machine.status == "running":
                await self._copy_most(copier)
            self._check_alive()
            with self._still() as resume:
                parts = machine.save_parts()
                await self._copy(copier, copier.last_round)
                report = copier.selection.report(file.pages, machine.balloon.actual)
                if wish.keep_running:
                    resume()
                    logging_on.close()  # each page written costs the guest a fault
                records = [config_record(machine.config), report.record(), *parts]
                size = await self._in_thread(lambda: file.finish(records))
        self.status = replace(
            self.status,
            completed_pages=report.stored,
            total_pages=report.stored,
            file_bytes=size,
            report=report,
        )

    async def _copy_most(self, copier: Copier) -> None:
        """Copy while the guest runs, until what it changes meanwhile hardly becomes less."""
        took_s = math.inf
        for _ in range(MAX_ROUNDS - 1):
            before_s, begin = took_s, time.monotonic()
            await self._copy(copier, copier.round)
            took_s = time.monotonic() - begin
            if took_s < SHORT_S or took_s > before_s / 2:
                break

    async def _copy(self, copier: Copier, one_round: Callable[[], None]) -> None:
        done = self.status.completed_pages
        self.status = replace(self.status, total_pages=done + copier.todo.pages)
        await self._in_thread(one_round)

    @contextmanager
    def _still(self) -> Iterator[Callable[[], None]]:
        """The guest stands still until the function given is called, or something fails."""
        machine, begin = self._machine, time.monotonic()
        standing = machine.status == "running"

        def resume() -> None:
            nonlocal standing
            still.close()
            if standing and machine.status == "paused":
                machine.resume()
            standing = False

        with ExitStack() as still:
            still.callback(self._note_stop, begin)
            if standing:
                machine.pause()
            still.enter_context(machine.quiescent())
            try:
                yield resume
            except BaseException:
                resume()
                raise

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        """Nothing is taken away from `work` before it has ended, even if nobody waits any more."""
        future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait({future})
            raise

    def _note_stop(self, begin: float) -> None:
        self.status = replace(self.status, stopped_seconds=time.monotonic() - begin)

    def _looked_at(self, pages: int) -> None:
        """Note progress; called in the thread that copies."""
        if self._closed.is_set():
            raise Ended
        status = self.status
        self.status = replace(status, completed_pages=status.completed_pages + pages)

    def _check_alive(self) -> None:
        if self._closed.is_set() or self._machine.status not in ("running", "paused"):
            raise Ended
