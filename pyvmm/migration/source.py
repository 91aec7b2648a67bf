# SPDX-License-Identifier: Apache-2.0
"""The source of a migration: setup, pre-copy rounds, switchover, commit.

Setup. The source sends its machine's configuration, and the destination creates the same machine.
Meanwhile the source switches on the dirty log, so that from then on no change to memory can be
missed, and asks the guest which pages it does not use (see `pyvmm.memory.precopy`).

Pre-copy rounds. The first round sends the pages that the guest may use and that have memory behind
them; pages of zeros are not sent, because a destination's RAM is zeros to begin with. Every later
round sends what has changed since its pages were last sent, until the rest would take no longer
than the downtime limit at the rate at which the destination took in the last round. Pages that have
been sent and are zeros now, for example because they are in the balloon, are named, so that the
destination frees them. Rounds begin at most every `MIN_ROUND_S`, to leave the host's CPUs to
others; that costs nothing, because the log is cleared only after the wait.

A guest may write faster than the connection carries. Then rounds continue until someone cancels or,
with auto-converge, until the vCPUs are throttled enough (`pyvmm.migration.auto_converge`). However
the migration ends, they are not throttled afterwards.

With several streams, `pyvmm.migration.stream_senders` sends the pages on connections of their own;
everything else stays on the first one, and every round still ends before the next begins.

Switchover. The guest is paused, and the remaining pages and the state of the machine are sent.

The guest may be paused for the downtime limit and `Timeouts.switchover` in all. When that has
passed and no commit has been sent, it resumes here.

Commit. When the destination has restored everything, the source sends the commit
(`pyvmm.migration` explains why at most one side runs the guest).

All of this runs in the migration's thread. `cancel` has no effect once the commit is being sent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pyvmm.memory.precopy import CHUNK_PAGES, Chunk, PreCopy
from pyvmm.migration import messages
from pyvmm.migration.auto_converge import AutoConverge
from pyvmm.migration.checksum_choice import AUTO, DEFAULT, chosen, faster_checksums
from pyvmm.migration.collection import collection_deferred
from pyvmm.migration.errors import (
    Cancelled,
    MigrationError,
    PeerAborted,
    SwitchoverUnconfirmed,
)
from pyvmm.migration.rate_limiter import RateLimiter
from pyvmm.migration.source_channel import SourceChannel
from pyvmm.migration.stream_senders import StreamSenders
from pyvmm.migration.timeouts import TIMEOUTS, Timeouts
from pyvmm_native import PAGE_BYTES
from pyvmm_native.checksum import Checksum
from pyvmm_native.pages import bitmap
from pyvmm_native.runs import PageRuns

if TYPE_CHECKING:
    from pyvmm.config import MachineConfig
    from pyvmm.memory.dirty_log import DirtyLog
    from pyvmm.memory.precopy import UnusedPages
    from pyvmm.migration.link import Link
    from pyvmm.migration.page_channel import PageChannel
    from pyvmm.migration.progress import DowntimeSteps, MigrationProgress, Settings
    from pyvmm.state.records import Record
    from pyvmm_native.memory import GuestMemory

MIN_ROUND_S = 0.05


class SourceGuest(Protocol):
    """The guest, as the source of its migration sees it.

    Threads: migration.
    """

    @property
    def config(self) -> MachineConfig:
        """The configuration of its machine."""

    @property
    def memory(self) -> GuestMemory:
        """Its RAM, private anonymous memory."""

    def log_dirty_pages(self) -> AbstractContextManager[DirtyLog]:
        """Log all changes to memory while the returned context manager's block runs.

        The block does not end if the guest has moved: to end it would take time, for a guest that
        does not run here any more.
        """

    def request_unused_pages(self, timeout_s: float) -> Future[UnusedPages]:
        """Return pages it will not have used at some time after the call.

        There are none if it does not answer in time. The request may be cancelled.
        """

    def throttle(self, percentage: int) -> None:
        """Keep its vCPUs out of the guest for this percentage of their time; 0 ends that."""

    def stop(self) -> bool:
        """Pause it and everything that changes its memory or state; return whether it ran."""

    def save_parts(self) -> Sequence[Record]:
        """Save everything but memory; the guest is paused."""

    def resume(self) -> None:
        """Undo `stop`: the guest stays here."""


class _RoundBegin(NamedTuple):
    """The state when a round began."""

    at: float
    """By time.monotonic()."""
    sent_bytes: int


class SourceMigration:
    """One migration of `guest` over `link`, whose figures are in `progress`.

    `connect` makes further connections to the destination, for several streams; it may raise
    `UserError`.

    Threads: migration; `settings`, `cancel` and `abort` any.
    """

    def __init__(
        self,
        guest: SourceGuest,
        link: Link,
        settings: Settings,
        progress: MigrationProgress,
        timeouts: Timeouts = TIMEOUTS,
        connect: Callable[[], Link] | None = None,
    ) -> None:
        self._guest = guest
        self._link = link
        self._timeouts = timeouts
        self._channel = SourceChannel(link, progress, timeouts)
        self.settings = settings
        """May be replaced at any time; changes take effect with the next message or round."""
        self._progress = progress
        self._pages: PageChannel  # once the destination has chosen the checksum
        self._streams: StreamSenders | None = None
        if settings.streams > 1:
            if connect is None:
                raise MigrationError("there is one connection to the destination, so one stream")
            self._streams = StreamSenders(settings.streams, connect, guest.memory, self._channel)
        self._round = 0
        self._nonzero_there: dict[int, PageRuns] = {}  # at the destination, by chunk
        self._unused: Future[UnusedPages] | None = None  # once the guest was asked
        self._cancelled = threading.Event()
        self._committing = threading.Lock()
        self._committed = False

    def run(self) -> None:
        """Migrate the guest; return when it runs at the destination.

        Raises `SwitchoverUnconfirmed` if the destination has not confirmed that it does. Raises
        another `MigrationError`, or an error of `guest`, if the guest continues here.
        """
        try:
            self._migrate()
        except MigrationError as error:
            if self._committed:
                raise
            if self._cancelled.is_set():
                raise Cancelled("the migration was cancelled") from error
            raise
        finally:
            if self._streams is not None:
                self._streams.end()

    def cancel(self) -> bool:
        """Make `run` raise `Cancelled`; return False if the commit is being sent."""
        with self._committing:
            if self._committed:
                return False
            self._cancelled.set()
        self._break_connections()
        if self._unused is not None:
            self._unused.cancel()
        return True

    def abort(self) -> None:
        """Make `run` end whatever the destination does, even after the commit."""
        if not self.cancel():
            self._break_connections()

    def _break_connections(self) -> None:
        self._link.abort()
        if self._streams is not None:
            self._streams.abort()

    def _migrate(self) -> None:
        welcome_s = self._timeouts.welcome
        self._channel.limit(welcome_s, f"the destination has not answered within {welcome_s:g} s")
        automatic, streams = self.settings.checksum == AUTO, self.settings.streams
        named = DEFAULT if automatic else self.settings.checksum
        offered = faster_checksums() if automatic else ()
        self._channel.send(messages.Hello(self._guest.config, named, streams, offered))
        with ExitStack() as while_here:
            log = while_here.enter_context(self._guest.log_dirty_pages())
            unused = self._guest.request_unused_pages(self.settings.unused_timeout_s)
            self._unused = unused
            while_here.callback(unused.cancel)
            welcome = self._channel.expect(messages.Welcome)
            checksum = self._progress.checksum = chosen(named, offered, welcome.checksum)
            if self._streams is not None:
                self._join(self._streams, welcome.token, checksum)
            else:
                self._pages = self._link.pages(self._guest.memory, Checksum(checksum))
            self._channel.lift_limit()
            try:
                precopy = self._select_pages(log, self._answer(unused))
                self._precopy(precopy)
                self._switch_over(precopy)
            finally:
                self._throttle(0)
            while_here.pop_all()  # nothing runs here again: the log may stay on

    def _join(self, streams: StreamSenders, token: bytes, checksum: str) -> None:
        """Connect all streams, and wait until the destination has them."""
        limit_s = self._timeouts.welcome
        self._channel.limit(limit_s, f"the streams have not joined within {limit_s:g} s")
        streams.start(token, checksum)
        try:
            self._channel.expect(messages.StreamsJoined)
        except PeerAborted:
            raise
        except MigrationError:
            streams.raise_failure()
            raise
        streams.joined()

    def _answer(self, unused: Future[UnusedPages]) -> UnusedPages:
        """Wait for the guest's answer, unless the migration is cancelled."""
        if self._cancelled.is_set():  # perhaps before `cancel` knew of the request
            unused.cancel()
        try:
            return unused.result()
        except CancelledError as error:
            raise Cancelled("the migration was cancelled") from error

    def _select_pages(self, log: DirtyLog, unused: UnusedPages) -> PreCopy:
        """Select the pages of the first round."""
        precopy = PreCopy(self._guest.memory, log, unused)
        self._progress.selected(unused.how, precopy.skipped.pages)
        self._progress.collected(precopy.todo.pages, 0.0)
        return precopy

    # --- Pre-copy rounds ------------------------------------------------------------------------
    def _precopy(self, precopy: PreCopy) -> None:
        """Copy while the guest runs, until the rest fits into the downtime limit."""
        progress, auto_converge = self._progress, AutoConverge()
        took_s = MIN_ROUND_S
        while True:
            begin, sent_before = time.monotonic(), progress.sent_bytes
            self._cancelled.wait(MIN_ROUND_S - took_s)
            took_s = self._send_round(precopy)
            precopy.collect()
            period_s = time.monotonic() - begin
            changed_pages = precopy.todo.pages
            progress.collected(changed_pages, period_s)
            settings = self.settings
            if progress.expected_downtime_s <= settings.downtime_limit_s:
                return
            sent = progress.sent_bytes - sent_before
            self._throttle(
                auto_converge.judge(settings, changed_pages * PAGE_BYTES, sent, period_s)
            )

    def _throttle(self, percentage: int) -> None:
        if percentage != self._progress.throttle_percentage:
            self._guest.throttle(percentage)
            self._progress.throttle_percentage = percentage

    def _send_round(self, precopy: PreCopy) -> float:
        """Send the round and wait until the destination has it; return the seconds it took."""
        begin = self._send_pages(precopy, last=False)
        self._channel.send(messages.RoundEnd(self._round))
        return self._expect_ack(begin)

    def _send_pages(self, precopy: PreCopy, *, last: bool) -> _RoundBegin:
        """Send the pages of a round, but not its end; only the `last` one has no limit."""
        begin = _RoundBegin(time.monotonic(), self._progress.sent_bytes)
        limiter = None if last else RateLimiter(self.settings.max_bandwidth, begin.sent_bytes)
        precopy.copy(lambda chunk: self._send_chunk(chunk, limiter), last=last)
        self._round += 1
        if self._streams is not None:
            self._streams.end_round(self._round)
        return begin

    def _expect_ack(self, begin: _RoundBegin) -> float:
        """Wait until the destination has the round; return the seconds since it began."""
        sent_bytes = self._progress.sent_bytes - begin.sent_bytes
        ack = self._channel.expect(messages.RoundAck)
        assert ack.number == self._round, "the reader counts rounds, too"
        seconds = time.monotonic() - begin.at
        self._progress.round_done(sent_bytes, seconds)
        return seconds

    def _send_chunk(self, chunk: Chunk, limiter: RateLimiter | None) -> None:
        """Send the messages that bring `chunk` up to date at the destination."""
        full = chunk.nonzero
        nonzero_there = self._nonzero_there.get(chunk.start_pfn, PageRuns())
        emptied = nonzero_there.intersect(chunk.pages).subtract(full)
        for zeros in messages.Zeros.split(emptied):
            self._channel.send(zeros)
            self._after_message(limiter)
        self._nonzero_there[chunk.start_pfn] = nonzero_there.subtract(emptied).union(full)
        bits = bitmap(full, chunk.start_pfn, CHUNK_PAGES)
        heads = memoryview(messages.Pages.heads(chunk.start_pfn, bits))
        while heads:
            sent = self._send_blocks(heads, limiter)
            heads = heads[sent * messages.PAGES_MESSAGE_BYTES :]
            self._after_message(limiter)
        self._progress.done(chunk.pages.pages, full.pages)

    def _send_blocks(self, heads: memoryview, limiter: RateLimiter | None) -> int:
        """Send one block of those that `heads` name, or some; return how many."""
        first = heads[: messages.PAGES_MESSAGE_BYTES]
        if self._streams is not None:
            self._progress.sent_bytes += self._streams.send(first)
            return 1
        limited = limiter is not None and self.settings.max_bandwidth
        return self._channel.send_pages(self._pages, first if limited else heads)

    def _after_message(self, limiter: RateLimiter | None) -> None:
        """Notice an abort, and keep to the bandwidth."""
        if self._cancelled.is_set():
            raise Cancelled("the migration was cancelled")
        self._channel.check_abort()
        if limiter is not None:
            limit, sent_bytes = self.settings.max_bandwidth, self._progress.sent_bytes
            if (wait_s := limiter.wait_s(limit, sent_bytes)) > 0:
                self._cancelled.wait(wait_s)

    # --- Switchover and commit ------------------------------------------------------------------
    def _switch_over(self, precopy: PreCopy) -> None:
        """Stop the guest and commit it to the destination; it continues here if that fails."""
        limit_s = self._timeouts.switchover + self.settings.downtime_limit_s
        self._channel.limit(limit_s, f"the switchover has taken more than {limit_s:g} s")
        downtime = self._progress.downtime_begins()
        with collection_deferred():
            was_running = self._guest.stop()
            downtime.step("stop")
            try:
                self._send_rest(precopy, was_running, downtime)
                self._commit()
                downtime.step("start")
            except BaseException:
                if not self._committed:
                    self._guest.resume()
                raise
            finally:
                self._progress.downtime_s = downtime.seconds

    def _send_rest(self, precopy: PreCopy, was_running: bool, downtime: DowntimeSteps) -> None:
        """Send the last pages and the state; return when the destination has restored it.

        The state follows the pages at once, with the end of the round in one piece: the
        acknowledgement of the round is read after it.
        """
        parts = self._guest.save_parts()
        downtime.step("save")
        precopy.collect()
        self._progress.collected(precopy.todo.pages, 0.0)
        round_begin = self._send_pages(precopy, last=True)
        required = sum(not part.optional for part in parts)
        self._channel.send(
            messages.RoundEnd(self._round),
            *map(messages.DeviceState, parts),
            messages.Ready(self._progress.full_pages, required, was_running),
        )
        self._expect_ack(round_begin)
        downtime.step("pages")
        self._channel.expect(messages.StateRestored)
        downtime.step("restore")

    def _commit(self) -> None:
        with self._committing:
            if self._cancelled.is_set():
                raise Cancelled("the migration was cancelled")
            self._committed = True
        limit_s = self._timeouts.commit
        self._channel.limit(limit_s, f"the destination has not answered within {limit_s:g} s")
        try:
            self._channel.send(messages.Commit())
            self._channel.expect(messages.Running)
        except PeerAborted:
            self._committed = False  # the destination will never run it
            raise
        except Exception as error:
            raise SwitchoverUnconfirmed(
                f"the commit was sent, but the destination has not confirmed it ({error})"
            ) from error
