# SPDX-License-Identifier: Apache-2.0
"""The destination's end of one connection: receive messages and pages, send replies and aborts.

Each message has a deadline, however slowly its bytes arrive. A migration of several streams has
several connections, and for minutes there may be nothing to send on one of them. So until a message
begins, its deadline counts from the last whole message that any stream has brought.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from pyvmm.migration.errors import LinkTimedOut, MigrationError
from pyvmm.migration.messages import Failed, Pages
from pyvmm_native.page_blocks import scatter_block

if TYPE_CHECKING:
    from pyvmm.migration.link import Link
    from pyvmm.migration.messages import FromDestination, FromSource
    from pyvmm.migration.page_channel import PageChannel
    from pyvmm.migration.stream import SourceReader, StreamReader
    from pyvmm_native.memory import GuestMemory

_MAX_DRAINED_BYTES = 1 << 28


class LastMessage:
    """When the last whole message of a migration arrived, on any of its streams.

    Threads: migration, stream receiver.
    """

    def __init__(self) -> None:
        self.at = time.monotonic()


class DestinationChannel:
    """Talks to the source over `link`, whose messages `reader` reads.

    Threads: migration, stream receiver; one of them.
    """

    def __init__(self, link: Link, reader: SourceReader | StreamReader, last: LastMessage) -> None:
        self._link = link
        self._reader = reader
        self._last = last
        self._message_s = 0.0

    def receive(self, within_s: float) -> FromSource:
        """Return the next message, which has `within_s`. Raises `MigrationError`."""
        self._message_s = within_s
        self._link.deadline = time.monotonic() + within_s
        while (message := self._reader.next()) is None:
            try:
                data = self._link.receive(self._reader.wanted_bytes)
            except LinkTimedOut as error:
                self._extend_deadline()
                if self._link.deadline > time.monotonic():
                    continue
                raise self._late() from error
            if not data:
                raise _closed()
            self._extend_deadline()
            self._reader.feed(data)
        self._last.at = time.monotonic()
        return message

    def _extend_deadline(self) -> None:
        """Count the deadline from the last message of any stream, unless one has begun here."""
        if self._reader.between_messages:
            self._link.deadline = max(self._link.deadline, self._last.at + self._message_s)

    def receive_pages(self, memory: GuestMemory, channel: PageChannel, message: Pages) -> int:
        """Store the pages of `message`, and perhaps of those that follow; return their number.

        The deadline is that of the message; each of those that follow has as much time as that had.
        """
        if message.data:
            scatter_block(memory, message.first_pfn, message.bitmap, message.data)
            return message.count
        try:
            received = channel.receive_blocks(message.record().encode(), self._message_s)
        except LinkTimedOut as error:
            raise self._late() from error
        except EOFError as error:
            raise _closed() from error
        if not received.right:
            raise MigrationError("pages are damaged: wrong checksum")
        self._reader.feed(received.ahead)
        return received.pages

    def send(self, message: FromDestination, within_s: float) -> None:
        """Send `message`, which has `within_s`. Raises `MigrationError`."""
        self._link.deadline = time.monotonic() + within_s
        try:
            self._link.send(message.record().encode())
        except LinkTimedOut as error:
            raise LinkTimedOut(
                f"the source has not taken a message for {within_s:.3g} s"
            ) from error

    def abort(self, reason: str, within_s: float) -> None:
        """Tell the source the reason, if it can still be reached.

        Data that it is sending is drained unread: a connection that is closed with bytes unread is
        reset, and the reason would be lost. Both are limited to `within_s` and the second in bytes.
        """
        with suppress(MigrationError):
            self.send(Failed(reason), within_s)
            self._link.deadline = ends_at = time.monotonic() + within_s
            drained = 0
            while drained < _MAX_DRAINED_BYTES and time.monotonic() < ends_at:
                if not (data := self._link.receive(1 << 20)):
                    break
                drained += len(data)

    def _late(self) -> LinkTimedOut:
        return LinkTimedOut(f"the source has not sent a whole message for {self._message_s:.3g} s")


def _closed() -> MigrationError:
    return MigrationError("the source has closed the connection before the commit")
