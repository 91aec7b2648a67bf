# SPDX-License-Identifier: Apache-2.0
"""Taking a snapshot of a running machine, on its event loop.

In this order, because each step leans on the one before:

1. KVM begins to log what the guest writes.
2. The guest is asked which pages it does not use; it may not answer, which costs the time-out.
3. The guest stops. Notifications that it sent before are served, and from here on nothing touches
   its memory. What it wrote since step 1 leaves the set of unused pages.
4. The parts of the machine write themselves down, then pages are chosen and written to the file by
   a thread of its own, so that the control socket stays responsive.
5. The guest goes on, or stays as it is. After a failure it always goes on.

A snapshot that was begun is shown by `status` until the next one. The end of the machine ends it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from pyvmm.errors import UserError
from pyvmm.snapshot.report import PageReport, config_record
from pyvmm.snapshot.selection import Answer, ask_unused, select
from pyvmm.snapshot.writer import write_snapshot
from pyvmm_native.runs import PageRuns

if TYPE_CHECKING:
    from devices.balloon.device import BalloonDevice
    from devices.ports import GuestRam
    from pyvmm.balloon_questions import BalloonQuestions
    from pyvmm.config import MachineConfig
    from pyvmm.control.machine_control import Status
    from pyvmm.free_page_hints import FreePageHints
    from pyvmm.state.records import Record

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class WriteLogger(Protocol):
    """A log of the guest's writes that is on."""

    def take(self) -> PageRuns:
        """Pages written since it was switched on, or since the last call."""


class Source(Protocol):
    """The machine, as far as a snapshot needs it. Everything is called on its event loop."""

    @property
    def config(self) -> MachineConfig:
        """What it was made from."""

    @property
    def ram(self) -> GuestRam:
        """Its memory."""

    @property
    def ram_pages(self) -> PageRuns:
        """Where that lies."""

    @property
    def balloon(self) -> BalloonDevice:
        """Its balloon."""

    @property
    def balloon_questions(self) -> BalloonQuestions:
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

    def log_writes(self) -> AbstractContextManager[WriteLogger]:
        """Have the guest's writes logged for the length of a block."""

    def quiescent(self) -> AbstractContextManager[None]:
        """Keep devices from touching the memory of the stopped guest for the length of a block."""

    def prepare_parts(self) -> None:
        """Have `save_parts` take no longer than it must."""

    def save_parts(self) -> Sequence[Record]:
        """Everything but memory, of the stopped guest."""


@dataclass(frozen=True)
class Wish:
    """What somebody wants of a snapshot."""

    path: Path
    keep_running: bool = True
    """Afterwards the guest goes on if it ran before; otherwise it stays stopped."""
    ask_unused: bool = True
    timeout_s: float = 10.0
    """How long the guest may take to say which pages it does not use."""


@dataclass(frozen=True)
class SnapshotStatus:
    """How far a snapshot is. Pages are those that go to the file; times in seconds."""

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

    def __init__(self, machine: Source) -> None:
        self._machine = machine
        self._task: asyncio.Task[None] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._closed = threading.Event()
        self.status = SnapshotStatus()

    @property
    def active(self) -> bool:
        """A snapshot is being taken; the guest may stand still for it."""
        return self.status.status == "active"

    def start(self, wish: Wish) -> None:
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

    async def _take(self, wish: Wish) -> None:
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

    async def _save(self, wish: Wish) -> None:
        machine = self._machine
        await machine.memory_loaded()
        machine.prepare_parts()
        with machine.log_writes() as log:
            unused = Answer(PageRuns(), "not asked, as was wished")
            if wish.ask_unused:
                unused = await ask_unused(
                    machine.balloon,
                    machine.balloon_questions,
                    machine.free_page_hints,
                    wish.timeout_s,
                )
            self._check_alive()
            with self._stopped(wish.keep_running):
                await self._save_stopped(wish.path, unused, log.take())

    async def _save_stopped(self, path: Path, unused: Answer, written: PageRuns) -> None:
        machine = self._machine
        parts = machine.save_parts()
        memory = machine.ram.memory
        chosen = await self._in_thread(lambda: select(memory, machine.ram_pages, unused, written))
        report = replace(chosen.report, ballooned=machine.balloon.actual)
        self.status = replace(self.status, total_pages=chosen.pages.pages, report=report)
        records = [config_record(machine.config), report.record(), *parts]
        size = await self._in_thread(
            lambda: write_snapshot(path, memory, chosen.pages, records, self._written)
        )
        self.status = replace(self.status, file_bytes=size)

    @contextmanager
    def _stopped(self, keep_running: bool) -> Iterator[None]:
        """The guest stands still for this block, and longer if that is wished and all is well."""
        machine = self._machine
        begin, ran, well = time.monotonic(), machine.status == "running", False
        if ran:
            machine.pause()
        try:
            with machine.quiescent():
                yield
            well = True
        finally:
            if ran and machine.status == "paused" and (keep_running or not well):
                machine.resume()
            self.status = replace(self.status, stopped_seconds=time.monotonic() - begin)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _written(self, pages: int) -> None:
        """Note progress; called in the thread that writes."""
        if self._closed.is_set():
            raise Ended
        status = self.status
        self.status = replace(status, completed_pages=status.completed_pages + pages)

    def _check_alive(self) -> None:
        if self._closed.is_set() or self._machine.status not in ("running", "paused"):
            raise Ended
