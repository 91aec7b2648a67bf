# SPDX-License-Identifier: Apache-2.0
"""The source's end of the connection: send messages, wait for replies, detect the peer's abort.

Each message has a deadline, however slowly its bytes move. `limit` sets one for all messages of a
phase; the earlier of the two counts.

While no reply is due, the only message that the destination may send is the one that aborts the
migration. It may also be the last thing in a connection that is already broken, so a failed send
looks for it before it reports the broken connection; so does the failure of another stream, which
a destination ends when it aborts.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, TypeVar

from pyvmm.errors import UserError
from pyvmm.migration.errors import LinkTimedOut, MigrationError, PeerAborted
from pyvmm.migration.messages import Failed
from pyvmm.migration.stream import DestinationReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.migration.link import Link
    from pyvmm.migration.messages import FromDestination, FromSource
    from pyvmm.migration.page_channel import PageChannel
    from pyvmm.migration.progress import MigrationProgress
    from pyvmm.migration.timeouts import Timeouts

_M = TypeVar("_M")
_T = TypeVar("_T")


class SourceChannel:
    """Talks to the destination over `link`, and counts what is sent in `progress`.

    Every method raises `PeerAborted` if the destination has aborted, and another `MigrationError`
    if the connection is broken or a reply is not the one that is due.

    Threads: migration; `deadline` and `end_input` stream sender, too.
    """

    def __init__(self, link: Link, progress: MigrationProgress, timeouts: Timeouts) -> None:
        self._link = link
        self._progress = progress
        self._message_s = timeouts.message
        self._abort_s = timeouts.abort
        self._replies = DestinationReader()
        self._phase_ends_at = math.inf
        self._phase_passed = ""

    def limit(self, seconds: float, passed: str) -> None:
        """End the phase that begins now after `seconds`; `passed` is the error then."""
        self._phase_ends_at = time.monotonic() + seconds
        self._phase_passed = passed

    def lift_limit(self) -> None:
        """Limit single messages only, from now on."""
        self._phase_ends_at = math.inf

    def send(self, *messages: FromSource) -> None:
        """Send `messages`, all of them at once: each time the destination wakes up for one."""
        data = b"".join([message.record().encode() for message in messages])
        self._sending(lambda: self._link.send(data))
        self._progress.sent_bytes += len(data)

    def send_pages(self, channel: PageChannel, heads: memoryview) -> int:
        """Send the first of `heads`, encoded `Pages`, and its contents over `channel`.

        Those that follow may be sent, too; return how many were.
        """
        sent, size = self._sending(lambda: channel.send_blocks(heads))
        self._progress.sent_bytes += size
        return sent

    def _sending(self, send: Callable[[], _T]) -> _T:
        """Return what `send` returns, which sends something."""
        self._set_deadline()
        try:
            return send()
        except LinkTimedOut as error:
            self._raise_abort_reason()
            raise self._timed_out("taken a message") from error
        except MigrationError:
            self._raise_abort_reason(self._abort_s)
            raise

    def stream_failure(self, number: int, error: Exception) -> MigrationError:
        """Return the error of a migration whose stream `number` has failed with `error`.

        It is the destination's reason, if that has aborted; that reason may still be on its way.
        """
        timed_out = isinstance(error, LinkTimedOut)
        self._raise_abort_reason(0.0 if timed_out else self._abort_s)
        if timed_out:
            return self._timed_out(f"taken a message on stream {number}")
        if isinstance(error, MigrationError | UserError):
            return MigrationError(f"stream {number}: {error}")
        return MigrationError(f"stream {number} has a bug: {error!r}")

    def end_input(self) -> None:
        """End a wait for a reply. Threads: any."""
        self._link.end_input()

    def expect(self, due: type[_M]) -> _M:
        """Wait for the next reply, which must be a `due`, and return it."""
        self._set_deadline()
        reply = self._receive()
        if not isinstance(reply, due):
            raise _unexpected(reply)
        return reply

    def check_abort(self) -> None:
        """Raise if the destination has sent anything, as no reply is due."""
        if self._link.readable():
            self._set_deadline()
            raise _unexpected(self._receive())

    def _receive(self) -> FromDestination:
        while (reply := self._replies.next()) is None:
            try:
                data = self._link.receive(self._replies.wanted_bytes)
            except LinkTimedOut as error:
                raise self._timed_out("answered") from error
            if not data:
                raise MigrationError("the destination has closed the connection")
            self._replies.feed(data)
        if isinstance(reply, Failed):
            raise PeerAborted(f"the destination has aborted: {reply.reason}")
        return reply

    def _raise_abort_reason(self, within_s: float = 0.0) -> None:
        """Raise `PeerAborted` if its message arrives over the broken connection `within_s`.

        The acknowledgement of the last round may have arrived before it: the state is sent without
        waiting for that.
        """
        self._link.deadline = min(time.monotonic() + within_s, self._phase_ends_at)
        try:
            for _ in ("acknowledgement", "abort"):
                self._receive()
        except PeerAborted:
            raise
        except MigrationError:
            pass

    def _set_deadline(self) -> None:
        self._link.deadline = self.deadline()

    def deadline(self) -> float:
        """Return the deadline of a message that is sent now. Threads: migration, stream sender."""
        return min(time.monotonic() + self._message_s, self._phase_ends_at)

    def _timed_out(self, missing: str) -> MigrationError:
        if time.monotonic() >= self._phase_ends_at:
            return MigrationError(self._phase_passed)
        return MigrationError(f"the destination has not {missing} for {self._message_s:g} s")


def _unexpected(reply: FromDestination) -> MigrationError:
    return MigrationError(f"the destination sent {type(reply).__name__} out of order")
