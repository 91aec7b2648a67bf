# SPDX-License-Identifier: Apache-2.0
"""The connection between the two sides of a migration.

`Link` is the interface that both sides use. `MigrationLink` implements it over a socket, and is the
only place that turns errors of the socket into errors of the migration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pyvmm.migration.errors import LinkBroken, LinkTimedOut
from pyvmm.migration.page_channel import BufferedPages, ByteLink, PageChannel, SocketPages
from pyvmm.sockets.errors import ConnectionLost, TransferTimedOut

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pyvmm.sockets.link import SocketLink
    from pyvmm_native.checksum import Checksum
    from pyvmm_native.memory import GuestMemory


class Link(ByteLink, Protocol):
    """A connection; its methods raise `MigrationError` when it is broken, but for the last three.

    Threads: migration, stream sender, stream receiver; `abort` and `end_input` any.
    """

    @property
    def local(self) -> bool:
        """True if the address of the destination is that of a unix socket."""

    def readable(self) -> bool:
        """Return whether `receive` would return at once."""

    def pages(self, memory: GuestMemory, checksum: Checksum) -> PageChannel:
        """Return the channel for blocks of `memory`, between the messages of this link."""

    def abort(self) -> None:
        """Break the connection, even while another thread uses it."""

    def end_input(self) -> None:
        """Make `receive` return none, even while another thread waits in it; `send` still sends."""

    def close(self) -> None:
        """Close the connection, which no other thread uses."""


class MigrationLink:
    """Wraps `link`; satisfies `Link`.

    Threads: migration, stream sender, stream receiver; `abort` and `end_input` any, `close` the
    event loop, too.
    """

    def __init__(self, link: SocketLink) -> None:
        self._link = link

    @property
    def deadline(self) -> float:
        """When a wait fails, by time.monotonic(); no limit at first."""
        return self._link.deadline

    @deadline.setter
    def deadline(self, deadline: float) -> None:
        self._link.deadline = deadline

    def send(self, data: Buffer) -> None:
        """Send all of `data`. Raises `LinkBroken`."""
        try:
            self._link.send(data)
        except ConnectionLost as error:
            raise _broken(error) from error

    def receive(self, at_most: int) -> bytes:
        """Return 1 to `at_most` bytes; none at the end of the stream. Raises `LinkBroken`."""
        try:
            return self._link.receive(at_most)
        except ConnectionLost as error:
            raise _broken(error) from error

    def receive_into(self, buffer: memoryview) -> int:
        """Fill the first bytes of `buffer`; return their number. Raises as `receive`."""
        try:
            return self._link.receive_into(buffer)
        except ConnectionLost as error:
            raise _broken(error) from error

    def readable(self) -> bool:
        """Return True if `receive` would not block. Raises `LinkBroken`."""
        try:
            return self._link.readable()
        except ConnectionLost as error:
            raise _broken(error) from error

    @property
    def local(self) -> bool:
        """As `Link.local`."""
        return self._link.local

    def pages(self, memory: GuestMemory, checksum: Checksum) -> PageChannel:
        """As `Link.pages`."""
        fd = self._link.plain_fd
        if fd is None:
            return BufferedPages(self, memory, checksum)
        return SocketPages(self, fd, memory, checksum)

    def abort(self) -> None:
        """Make the thread that uses the link fail at once."""
        self._link.abort()

    def end_input(self) -> None:
        """As `Link.end_input`."""
        self._link.end_input()

    def close(self) -> None:
        """Close the connection; the link must not be in use."""
        self._link.close()


def _broken(error: ConnectionLost) -> LinkBroken:
    kind = LinkTimedOut if isinstance(error, TransferTimedOut) else LinkBroken
    return kind(str(error))
