# SPDX-License-Identifier: Apache-2.0
"""The file of a snapshot, accessed by one thread that may hang.

A system call on a file system that does not respond (a network server that is down, for example)
cannot be interrupted. So one thread makes all of them, in order, and the event loop waits for each
with a limit. After that the thread is left behind: it stops when its call returns, and closes and
removes the file then.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvmm.blocking.in_thread import Worker
from pyvmm.snapshot.errors import SnapshotNotDurable, SnapshotNotWritten

if TYPE_CHECKING:
    from pyvmm.snapshot.timeouts import SnapshotTimeouts
    from pyvmm.snapshot.writer import SnapshotWriter
    from pyvmm.state.records import Record


class SnapshotFileThread:
    """The file of one snapshot, which only the thread of `worker` accesses.

    Raises `UserError` if its file system takes longer than `timeouts`.

    Threads: event loop; `abandoned` any.
    """

    def __init__(self, writer: SnapshotWriter, path: Path, timeouts: SnapshotTimeouts) -> None:
        self.writer = writer
        self.worker = Worker("snapshot")
        self.abandoned = threading.Event()
        """Set when nothing more may be written."""
        self._path = path
        self._timeouts = timeouts
        self._opened = ExitStack()

    async def open(self) -> None:
        """Create the file."""
        opening = self.worker.call(lambda: self._opened.enter_context(self.writer))
        if not await _done(opening, self._timeouts.open):
            opening.cancel()
            raise self._unresponsive(self._timeouts.open)
        opening.result()

    async def write(self, work: Callable[[], None], progress: Callable[[], int]) -> None:
        """Do `work`, and check now and then that `progress` increases."""
        writing = self.worker.call(work)
        before = progress()
        while not await _done(writing, self._timeouts.stall):
            if progress() == before:
                writing.cancel()
                raise self._unresponsive(self._timeouts.stall)
            before = progress()
        writing.result()

    async def finish(self, records: Sequence[Record]) -> int:
        """Complete the file and give it its name; return its size in bytes."""
        finishing = self.worker.call(lambda: self.writer.finish(records))
        if not await _done(finishing, self._timeouts.sync):
            finishing.cancel()
            raise SnapshotNotDurable(
                f"the snapshot {self._path} has not been written to the disk within"
                f" {self._timeouts.sync:g} s; it may or may not replace an older one"
            )
        return finishing.result()

    async def close(self) -> None:
        """Close the file, and remove it unless it is finished; do not wait for long."""
        self.abandoned.set()
        closing = self.worker.call(self._opened.close)
        self.worker.end()
        if not await _done(closing, self._timeouts.end):
            closing.cancel()

    def _unresponsive(self, seconds: float) -> SnapshotNotWritten:
        return SnapshotNotWritten(
            f"cannot write the snapshot {self._path}: its file system has not responded for"
            f" {seconds:g} s"
        )


async def _done(work: asyncio.Future[Any], within_s: float) -> bool:
    """Return whether `work` is done within `within_s`; it continues if not."""
    try:
        return bool((await asyncio.wait({work}, timeout=within_s))[0])
    except asyncio.CancelledError:
        work.cancel()
        raise
