# SPDX-License-Identifier: Apache-2.0
"""Blocks of pages over a link, straight between guest memory and the socket if possible.

A block follows its message, the head: the pages in order, and their checksum, u64. `SocketPages`
leaves that to `pyvmm_native.page_socket`; `BufferedPages` needs nothing but a `ByteLink`, and
serves TLS, whose bytes pass through OpenSSL.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pyvmm.migration.errors import LinkBroken, LinkTimedOut
from pyvmm_native import PAGE_BYTES
from pyvmm_native.page_blocks import BLOCK_PAGES, gather_block, scatter_block
from pyvmm_native.page_socket import HEAD_BYTES, PageSocket

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pyvmm_native.checksum import Checksum
    from pyvmm_native.memory import GuestMemory

_SUM = struct.Struct("<Q")
SUM_BYTES = _SUM.size
_BLOCK = struct.Struct(f"<Q{BLOCK_PAGES // 8}s")


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


class ReceivedPages(NamedTuple):
    """One or more blocks that have arrived."""

    right: bool
    """All checksums were right."""
    pages: int
    """Their number."""
    ahead: bytes
    """Bytes of the message that follows."""


class PageChannel(Protocol):
    """Sends and receives blocks of one guest's memory; the deadline is that of the link.

    Both methods raise `MigrationError` when the link is broken, and ValueError for pages outside
    RAM. A head is an encoded `Pages`. A call may deal with several blocks, and ends soon.

    Threads: migration, stream sender, stream receiver; one of them.
    """

    def send_blocks(self, heads: memoryview) -> tuple[int, int]:
        """Send the first of `heads`, the pages of its block as they are now, and their checksum.

        The same may be done for those that follow. Return the number of blocks and of bytes.
        """

    def receive_blocks(self, head: bytes, block_s: float) -> ReceivedPages:
        """Fill the pages of the block whose `head` has arrived, and perhaps of those that follow.

        Each of those has `block_s` seconds.

        EOFError when the other side has closed the connection.
        """


class SocketPages:
    """Satisfies `PageChannel` on the plain socket `fd`, which `link` owns."""

    def __init__(self, link: ByteLink, fd: int, memory: GuestMemory, checksum: Checksum) -> None:
        self._link = link
        self._socket = PageSocket(fd, memory, checksum)

    def send_blocks(self, heads: memoryview) -> tuple[int, int]:
        """As `PageChannel`."""
        try:
            return self._socket.send_blocks(heads, self._link.deadline)
        except OSError as error:
            raise _broken(error) from error

    def receive_blocks(self, head: bytes, block_s: float) -> ReceivedPages:
        """As `PageChannel`."""
        try:
            return ReceivedPages(*self._socket.receive_blocks(head, self._link.deadline, block_s))
        except OSError as error:
            raise _broken(error) from error


class BufferedPages:
    """Satisfies `PageChannel` on any link, one block at a time."""

    def __init__(self, link: ByteLink, memory: GuestMemory, checksum: Checksum) -> None:
        self._link = link
        self._memory = memory
        self._checksum = checksum
        # Kept: new memory for each block would cost more, in page faults, than the copy itself.
        self._buffer = memoryview(bytearray(BLOCK_PAGES * PAGE_BYTES + SUM_BYTES))

    def send_blocks(self, heads: memoryview) -> tuple[int, int]:
        """As `PageChannel`."""
        head = heads[:HEAD_BYTES]
        first_pfn, bitmap = _block(head)
        size = gather_block(self._memory, first_pfn, bitmap, self._buffer)
        _SUM.pack_into(self._buffer, size, self._checksum.of(self._buffer[:size]))
        self._link.send(head)
        self._link.send(self._buffer[: size + SUM_BYTES])
        return 1, block_bytes(head)

    def receive_blocks(self, head: bytes, block_s: float) -> ReceivedPages:
        """As `PageChannel`."""
        first_pfn, bitmap = _block(head)
        count = int.from_bytes(bitmap, "little").bit_count()
        size = count * PAGE_BYTES
        self._fill(self._buffer[: size + SUM_BYTES])
        pages = self._buffer[:size]
        if (self._checksum.of(pages),) != _SUM.unpack_from(self._buffer, size):
            return ReceivedPages(False, count, b"")
        scatter_block(self._memory, first_pfn, bitmap, pages)
        return ReceivedPages(True, count, b"")

    def _fill(self, buffer: memoryview) -> None:
        filled = 0
        while filled < len(buffer):
            got = self._link.receive_into(buffer[filled:])
            if not got:
                raise EOFError
            filled += got


def block_bytes(head: memoryview) -> int:
    """Return the number of bytes of the block that `head` names, its own included."""
    _, bitmap = _block(head)
    return HEAD_BYTES + int.from_bytes(bitmap, "little").bit_count() * PAGE_BYTES + SUM_BYTES


def _block(head: bytes | memoryview) -> tuple[int, bytes]:
    """Return the first page frame of the block that `head` names, and its bitmap."""
    first_pfn, bitmap = _BLOCK.unpack_from(head, HEAD_BYTES - _BLOCK.size)
    return first_pfn, bitmap


def _broken(error: OSError) -> LinkBroken:
    if isinstance(error, TimeoutError):
        return LinkTimedOut("the other side has not answered in time")
    return LinkBroken(f"the connection failed: {error.strerror}")
