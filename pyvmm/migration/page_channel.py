# SPDX-License-Identifier: Apache-2.0
"""Blocks of pages over a link, straight between guest memory and the socket if possible.

A block follows its message: the pages in order, and their checksum, u64. `SocketPages` leaves that
to `pyvmm_native.page_socket`; `BufferedPages` needs nothing but a `ByteLink`, and serves
TLS, whose bytes pass through OpenSSL.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Protocol

from pyvmm.migration.errors import LinkBroken, LinkTimedOut
from pyvmm_native import PAGE_BYTES
from pyvmm_native.page_blocks import BLOCK_PAGES, gather_block, scatter_block
from pyvmm_native.page_socket import PageSocket

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pyvmm_native.checksum import Checksum
    from pyvmm_native.memory import GuestMemory

_SUM = struct.Struct("<Q")
SUM_BYTES = _SUM.size


class ByteLink(Protocol):
    """A connection that carries bytes; both methods raise `MigrationError` when it is broken.

    `deadline`, a time.monotonic(), is when those that wait raise `LinkTimedOut`.

    Threads: migration, stream sender, stream receiver; one of them.
    """

    deadline: float

    def send(self, data: Buffer) -> None:
        """Send all of `data`, which the caller may reuse afterwards."""

    def receive(self, at_most: int) -> bytes:
        """Wait for up to `at_most` bytes; return none when the other side has closed."""

    def receive_into(self, buffer: memoryview) -> int:
        """Wait for up to `len(buffer)` bytes; return their number, 0 as `receive` returns none."""


class PageChannel(Protocol):
    """Sends and receives blocks of one guest's memory; the deadline is that of the link.

    Both methods raise `MigrationError` when the link is broken, and ValueError for pages outside
    RAM. `first_pfn` and `bitmap` are as in `pyvmm_native.page_blocks`.

    Threads: migration, stream sender, stream receiver; one of them.
    """

    def send_block(self, head: bytes, first_pfn: int, bitmap: bytes) -> None:
        """Send `head`, the pages of a block as they are now, and their checksum."""

    def receive_block(self, first_pfn: int, bitmap: bytes) -> bool:
        """Fill the pages of a block; return whether their checksum is right.

        EOFError when the other side has closed the connection.
        """


class SocketPages:
    """Satisfies `PageChannel` on the plain socket `fd`, which `link` owns."""

    def __init__(self, link: ByteLink, fd: int, memory: GuestMemory, checksum: Checksum) -> None:
        self._link = link
        self._socket = PageSocket(fd, memory, checksum)

    def send_block(self, head: bytes, first_pfn: int, bitmap: bytes) -> None:
        """As `PageChannel`."""
        try:
            self._socket.send_block(head, first_pfn, bitmap, self._link.deadline)
        except OSError as error:
            raise _broken(error) from error

    def receive_block(self, first_pfn: int, bitmap: bytes) -> bool:
        """As `PageChannel`."""
        try:
            return self._socket.receive_block(first_pfn, bitmap, self._link.deadline)
        except OSError as error:
            raise _broken(error) from error


class BufferedPages:
    """Satisfies `PageChannel` on any link."""

    def __init__(self, link: ByteLink, memory: GuestMemory, checksum: Checksum) -> None:
        self._link = link
        self._memory = memory
        self._checksum = checksum
        # Kept: new memory for each block would cost more, in page faults, than the copy itself.
        self._buffer = memoryview(bytearray(BLOCK_PAGES * PAGE_BYTES + SUM_BYTES))

    def send_block(self, head: bytes, first_pfn: int, bitmap: bytes) -> None:
        """As `PageChannel`."""
        size = gather_block(self._memory, first_pfn, bitmap, self._buffer)
        _SUM.pack_into(self._buffer, size, self._checksum.of(self._buffer[:size]))
        self._link.send(head)
        self._link.send(self._buffer[: size + SUM_BYTES])

    def receive_block(self, first_pfn: int, bitmap: bytes) -> bool:
        """As `PageChannel`."""
        size = int.from_bytes(bitmap, "little").bit_count() * PAGE_BYTES
        self._fill(self._buffer[: size + SUM_BYTES])
        pages = self._buffer[:size]
        if (self._checksum.of(pages),) != _SUM.unpack_from(self._buffer, size):
            return False
        scatter_block(self._memory, first_pfn, bitmap, pages)
        return True

    def _fill(self, buffer: memoryview) -> None:
        filled = 0
        while filled < len(buffer):
            got = self._link.receive_into(buffer[filled:])
            if not got:
                raise EOFError
            filled += got


def _broken(error: OSError) -> LinkBroken:
    if isinstance(error, TimeoutError):
        return LinkTimedOut("the other side has not answered in time")
    return LinkBroken(f"the connection failed: {error.strerror}")
