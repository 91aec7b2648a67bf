# SPDX-License-Identifier: Apache-2.0
"""Pre-copy: the source's side of a migration, from the first page to the hand-over.

First of all the log of changes is switched on; from then on no change to a page can be missed.
Then the guest is asked which pages it does not use. The answer is out of date when it comes, but
what the guest has written since it looked is in the log: an unused page that is not in the log need
not be sent, and one that gets into the log later is sent then, like any other. The first round
sends what is left of RAM; pages that were never touched, are in the balloon, or hold only zeros are
not sent, because a destination's RAM is zeros to begin with. Every later round sends what has
changed since the one before, until what is left would take no longer than the downtime limit at the
rate at which the destination took in the last round. Then the guest stops and the rest follows.

A guest may write faster than the connection carries. Then rounds go on until somebody cancels, or,
if that was wished, until the guest's processors have been slowed down enough
(`pyvmm.migration.auto_converge`). However the migration ends, they run at full speed afterwards.
Rounds that are over in no time are not begun more often than every `MIN_ROUND_S`, to leave the rest
of the host its processors; that costs nothing, because the log is cleared only after the wait.

Of each stretch of pages the log is cleared before they are looked at, so whatever is changed after
a page was copied is in the log again. Pages that were sent and are zeros now, given to the balloon
for one, are named, so that the destination frees them.

All of this runs in a thread of its own. `cancel` may be called from any other, at any moment; it
comes too late only when the commit is being sent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, TypeVar

from pyvmm.memory.dirty_log import CHUNK_PAGES, chunks
from pyvmm.migration import messages
from pyvmm.migration.auto_converge import Convergence
from pyvmm.migration.errors import Cancelled, MigrationError, SwitchoverUnconfirmed
from pyvmm.migration.progress import Progress, Settings
from pyvmm.migration.stream import DestinationReader
from pyvmm_native import PAGE_BYTES
from pyvmm_native.page_blocks import BLOCK_PAGES
from pyvmm_native.pages import bitmap, nonzero, touched
from pyvmm_native.runs import PageRuns

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pyvmm.config import MachineConfig
    from pyvmm.memory.dirty_log import DirtyLog
    from pyvmm.memory.page_selection import UnusedPages
    from pyvmm.migration.messages import FromSource
    from pyvmm.state.records import Record
    from pyvmm_native.memory import GuestMemory

MIN_ROUND_S = 0.05
_BLOCK_BITMAP_BYTES = BLOCK_PAGES // 8

_M = TypeVar("_M")


class Guest(Protocol):
    """The guest that moves, as its source sees it. All calls come from the migration's thread."""

    @property
    def config(self) -> MachineConfig:
        """What machine it has."""

    @property
    def memory(self) -> GuestMemory:
        """Its RAM, private anonymous memory."""

    def logging(self) -> AbstractContextManager[DirtyLog]:
        """Log changes for the length of a block."""

    def ask_unused(self, timeout_s: float) -> UnusedPages:
        """Pages it did not use at some time after the call; none if it does not say."""

    def throttle(self, percentage: int) -> None:
        """Have its processors rest for so much of their time; 0 lets them run again."""

    def stop(self) -> bool:
        """Stop it, and all that changes its memory or state; whether it ran before."""

    def parts(self) -> Sequence[Record]:
        """Everything but memory; it is stopped."""

    def resume(self) -> None:
        """Undo `stop`: it stays here."""


class Link(Protocol):
    """A connection. Every call but `abort` raises `MigrationError` when it is broken."""

    def send(self, data: Buffer) -> None:
        """Send all of `data`, which is the caller's again afterwards."""

    def receive(self, at_most: int) -> bytes:
        """Wait for up to `at_most` bytes; none when the other side has closed."""

    def readable(self) -> bool:
        """Whether `receive` would not have to wait."""

    def abort(self) -> None:
        """Break the connection, whatever another thread does with it."""


class SourceMigration:
    """One migration of `guest` over `link`; `progress` tells how far it is."""

    def __init__(self, guest: Guest, link: Link, settings: Settings, progress: Progress) -> None:
        self._guest = guest
        self._link = link
        self.settings = settings
        """May be replaced at any time; what is new counts from the next message or round on."""
        self._progress = progress
        self._replies = DestinationReader()
        self._buffer = messages.PagesBuffer()
        self._round = 0
        self._held: dict[int, PageRuns] = {}  # by stretch, pages not zero at the destination
        self._cancelled = threading.Event()
        self._deciding = threading.Lock()
        self._committed = False

    def run(self) -> None:
        """Returns when the guest runs at the destination.

        Raises `SwitchoverUnconfirmed` when that is not known, and `MigrationError` or what `guest`
        raises
        when the guest goes on here.
        """
        try:
            self._migrate()
        except MigrationError as error:
            if self._committed:
                raise
            if self._cancelled.is_set():
                raise Cancelled("the migration was cancelled") from error
            raise

    def cancel(self) -> bool:
        """Have `run` raise `Cancelled`; False if the guest is the destination's already."""
        with self._deciding:
            if self._committed:
                return False
            self._cancelled.set()
        self._link.abort()
        return True

    def abort(self) -> None:
        """Have `run` come to an end whatever the destination does, also after the commit."""
        if not self.cancel():
            self._link.abort()

    def _migrate(self) -> None:
        self._send(messages.Hello(self._guest.config))
        self._expect(messages.Welcome)
        with self._guest.logging() as log:
            try:
                todo = self._copy_most(log)
                self._switch_over(todo, log)
            finally:
                self._throttle(0)

    def _copy_most(self, log: DirtyLog) -> PageRuns:
        """Copy while the guest runs, until the rest, which is returned, fits into the limit."""
        progress, convergence = self._progress, Convergence()
        todo, took_s = self._first_round(log), MIN_ROUND_S
        while True:
            begin, sent_before = time.monotonic(), progress.sent_bytes
            self._cancelled.wait(MIN_ROUND_S - took_s)
            took_s = self._send_round(todo, log, limited=True)
            todo = log.collect()
            period_s = time.monotonic() - begin
            progress.collected(todo.pages, period_s)
            settings = self.settings
            if progress.expected_downtime_s <= settings.downtime_limit_s:
                return todo
            sent = progress.sent_bytes - sent_before
            self._throttle(convergence.judge(settings, todo.pages * PAGE_BYTES, sent, period_s))

    def _throttle(self, percentage: int) -> None:
        if percentage != self._progress.throttle_percentage:
            self._guest.throttle(percentage)
            self._progress.throttle_percentage = percentage

    def _first_round(self, log: DirtyLog) -> PageRuns:
        """Pages to be sent at first; the log is on."""
        memory = self._guest.memory
        unused = self._guest.ask_unused(self.settings.ask_timeout_s)
        # Nobody looks whether there is memory behind unused pages: that takes time for each.
        ram = PageRuns(memory.page_ranges)
        there = touched(memory, ram.subtract(unused.pages))
        # What is in the log by now may have been written after the guest looked, or for the first
        # time after we did.
        changed = log.collect()
        todo = there.union(changed)
        skipped = ram.intersect(unused.pages).subtract(changed)
        self._progress.asked(unused.how, skipped.pages)
        self._progress.collected(todo.pages, 0.0)
        return todo

    # --- Rounds ---------------------------------------------------------------------------------
    def _send_round(self, todo: PageRuns, log: DirtyLog, *, limited: bool) -> float:
        """Send `todo` and wait until it is in memory; returns the seconds."""
        begin = time.monotonic()
        sent_before = self._progress.sent_bytes
        pace = _RateLimiter(self.settings.max_bandwidth, sent_before)
        for stretch, pages in chunks(self._guest.memory, todo):
            log.clear(stretch, CHUNK_PAGES)
            for data in self._contents(stretch, pages):
                self._send_bytes(data)
                self._heed_replies()
                if limited:
                    sent = self._progress.sent_bytes
                    self._cancelled.wait(pace.wait_s(self.settings.max_bandwidth, sent))
        self._round += 1
        self._send(messages.RoundEnd(self._round))
        arrived = self._expect(messages.RoundAck)
        assert arrived.number == self._round, "the reader counts rounds, too"
        seconds = time.monotonic() - begin
        self._progress.round_done(self._progress.sent_bytes - sent_before, seconds)
        return seconds

    def _contents(self, stretch: int, pages: PageRuns) -> Iterator[Buffer]:
        """What the destination has to be told of `pages`, message by message."""
        memory = self._guest.memory
        full = nonzero(memory, touched(memory, pages))
        held = self._held.get(stretch, PageRuns())
        emptied = list(held.intersect(pages).subtract(full))
        for first in range(0, len(emptied), messages.MAX_ZERO_RUNS):
            some = PageRuns(emptied[first : first + messages.MAX_ZERO_RUNS])
            yield messages.Zeros(some).record().encode()
        self._held[stretch] = held.subtract(PageRuns(emptied)).union(full)
        bits = bitmap(full, stretch, CHUNK_PAGES)
        for place in range(0, len(bits), _BLOCK_BITMAP_BYTES):
            block = bits[place : place + _BLOCK_BITMAP_BYTES]
            if any(block):
                yield self._buffer.encoded(memory, stretch + 8 * place, block)
        self._progress.done(pages.pages, full.pages)

    # --- The end --------------------------------------------------------------------------------
    def _switch_over(self, todo: PageRuns, log: DirtyLog) -> None:
        """Stop the guest and make it the destination's; it goes on here if that cannot be."""
        stopped_at = time.monotonic()
        runs = self._guest.stop()
        try:
            parts = self._guest.parts()
            todo = todo.union(log.collect())
            self._progress.collected(todo.pages, 0.0)
            self._send_round(todo, log, limited=False)
            for part in parts:
                self._send(messages.DeviceState(part))
            self._send(messages.Ready(self._progress.full_pages, len(parts), runs))
            self._expect(messages.StateRestored)
            self._commit()
        except BaseException:
            if not self._committed:
                self._guest.resume()
            raise
        finally:
            self._progress.downtime_s = time.monotonic() - stopped_at

    def _commit(self) -> None:
        with self._deciding:
            if self._cancelled.is_set():
                raise Cancelled("the migration was cancelled")
            self._committed = True
        try:
            self._send(messages.Commit())
            self._expect(messages.Running)
        except PeerAborted:
            self._committed = False  # the destination will never run it
            raise
        except Exception as error:
            raise SwitchoverUnconfirmed(
                f"the guest was handed over, but the destination has not confirmed it ({error})"
            ) from error

    # --- Talking --------------------------------------------------------------------------------
    def _send(self, message: FromSource) -> None:
        self._send_bytes(message.record().encode())

    def _send_bytes(self, data: Buffer) -> None:
        try:
            self._link.send(data)
        except MigrationError:
            self._heed_last_words()
            raise
        self._progress.sent_bytes += memoryview(data).nbytes

    def _expect(self, wanted: type[_M]) -> _M:
        """Wait for the next message of the destination, which must be a `wanted`."""
        while (reply := self._replies.next()) is None:
            data = self._link.receive(self._replies.wanted_bytes)
            if not data:
                raise MigrationError("the destination has closed the connection")
            self._replies.feed(data)
        if isinstance(reply, messages.Failed):
            raise PeerAborted(f"the destination gives up: {reply.reason}")
        if not isinstance(reply, wanted):
            raise MigrationError(f"the destination says {type(reply).__name__} out of order")
        return reply

    def _heed_replies(self) -> None:
        """While nothing is due from the destination, all it can say is that it gives up."""
        if self._cancelled.is_set():
            raise Cancelled("the migration was cancelled")
        if self._link.readable():
            self._expect(_Nothing)

    def _heed_last_words(self) -> None:
        """A broken connection may hold the reason why the destination has given up."""
        try:
            self._expect(_Nothing)
        except PeerAborted:
            raise
        except MigrationError:
            pass


class _RateLimiter:
    """How long to wait so that no more is sent in a second than may be; 0 is no limit."""

    def __init__(self, limit: int, sent_bytes: int) -> None:
        self._begin(limit, sent_bytes)

    def _begin(self, limit: int, sent_bytes: int) -> None:
        self._limit, self._sent_before, self._begun_at = limit, sent_bytes, time.monotonic()

    def wait_s(self, limit: int, sent_bytes: int) -> float:
        """From now on, after so many bytes in all; what was sent under another limit is past."""
        if limit != self._limit:
            self._begin(limit, sent_bytes)
        if not limit:
            return 0.0
        return self._begun_at + (sent_bytes - self._sent_before) / limit - time.monotonic()


class PeerAborted(MigrationError):
    """The destination has said that it gives up: it does not run the guest and never will."""


class _Nothing:
    """No message is one of these."""
