# SPDX-License-Identifier: Apache-2.0
"""The source's end of the connection: send messages, wait for replies, detect the peer's abort.

While no reply is due, the only message that the destination may send is the one that aborts the
migration. It may also be the last thing in a connection that is already broken, so a failed send
looks for it before it reports the broken connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pyvmm.migration.errors import MigrationError, PeerAborted
from pyvmm.migration.messages import Failed
from pyvmm.migration.stream import DestinationReader

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pyvmm.migration.link import Link
    from pyvmm.migration.messages import FromDestination, FromSource
    from pyvmm.migration.progress import MigrationProgress

_M = TypeVar("_M")


class SourceChannel:
    """Talks to the destination over `link`, and counts what is sent in `progress`.

    Every method raises `PeerAborted` if the destination has aborted, and another `MigrationError`
    if the connection is broken or a reply is not the one that is due.

    Threads: migration.
    """

    def __init__(self, link: Link, progress: MigrationProgress) -> None:
        self._link = link
        self._progress = progress
        self._replies = DestinationReader()

    def send(self, message: FromSource) -> None:
        """Send `message`."""
        self.send_encoded(message.record().encode())

    def send_encoded(self, data: Buffer) -> None:
        """Send an encoded message."""
        try:
            self._link.send(data)
        except MigrationError:
            self._raise_abort_reason()
            raise
        self._progress.sent_bytes += memoryview(data).nbytes

    def expect(self, due: type[_M]) -> _M:
        """Wait for the next reply, which must be a `due`, and return it."""
        reply = self._receive()
        if not isinstance(reply, due):
            raise _unexpected(reply)
        return reply

    def check_abort(self) -> None:
        """Raise if the destination has sent anything, as no reply is due."""
        if self._link.readable():
            raise _unexpected(self._receive())

    def _receive(self) -> FromDestination:
        while (reply := self._replies.next()) is None:
            data = self._link.receive(self._replies.wanted_bytes)
            if not data:
                raise MigrationError("the destination has closed the connection")
            self._replies.feed(data)
        if isinstance(reply, Failed):
            raise PeerAborted(f"the destination has aborted: {reply.reason}")
        return reply

    def _raise_abort_reason(self) -> None:
        """Raise `PeerAborted` if its message is in the broken connection."""
        try:
            self._receive()
        except PeerAborted:
            raise
        except MigrationError:
            pass


def _unexpected(reply: FromDestination) -> MigrationError:
    return MigrationError(f"the destination sent {type(reply).__name__} out of order")
