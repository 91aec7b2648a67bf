# SPDX-License-Identifier: Apache-2.0
"""A whole migration from arbitrary bytes, one fault in it, at a destination on a real socket.

Invariant: if the stream arrives as it was sent, the guest runs with the memory that was sent. If it
is cut, or up to 32 bits of it in a row are changed, the destination raises `MigrationError` and the
guest never runs; only pages without a checksum may differ unnoticed. Nothing is written outside the
pages that the stream names.

The first bytes choose the checksum, how pages are received, on which kind of socket, and the fault;
the others, in threes, name pages and their contents. Unless every block ends a round, several are
received in one native call.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from pyvmm.memory.layout import ram_ranges
from pyvmm.migration import messages
from pyvmm.migration.destination import DestinationMigration
from pyvmm.migration.errors import MigrationError
from pyvmm.migration.link import MigrationLink
from pyvmm.migration.page_channel import BufferedPages, PageChannel
from pyvmm.sockets.link import SocketLink
from pyvmm_native import PAGE_BYTES
from pyvmm_native.checksum import Checksum
from pyvmm_native.memory import GuestMemory
from pyvmm_native.page_blocks import BLOCK_PAGES
from pyvmm_native.pages import touched
from pyvmm_native.runs import PageRuns
from tests.pyvmm.migration.migration_guest import PARTS, FakeTarget, config_of

CONFIG = config_of(65)
_HEAD_BYTES = 6
_MAX_BLOCKS = 12
_MAX_PAGES = 20
"""The stream must fit into the socket's buffer, as it is sent before the destination reads."""
_BUFFER_BYTES = 1 << 20
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)
_RAM = PageRuns((gpa // PAGE_BYTES, n // PAGE_BYTES) for gpa, n in ram_ranges(CONFIG.ram_bytes))


class _BufferedLink(MigrationLink):
    """A link that receives pages as one with TLS does."""

    def pages(self, memory: GuestMemory, checksum: Checksum) -> PageChannel:
        return BufferedPages(self, memory, checksum)


class _Block(NamedTuple):
    first_pfn: int
    pages: dict[int, int]
    """The byte that each page is filled with, by its number in the block."""


def run(data: bytes) -> None:
    """Migrate as `data`, followed by zeros, says; raise any error that breaks the invariant."""
    data = data.ljust(_HEAD_BYTES, b"\0")
    name = ("crc32c", "xxh3", "none")[data[0] % 3]
    blocks = _blocks(data[_HEAD_BYTES:])
    stream, unprotected = _stream(name, blocks, one_round=bool(data[1] & 8))
    damaged, may_run = _damage(stream, data, unprotected if name == "none" else [])
    target = FakeTarget()
    arrived = _receive(target, damaged, buffered=bool(data[1] & 1), tcp=bool(data[1] & 16))
    if damaged == stream:
        assert arrived
        _check_memory(target, blocks)
    assert may_run or not arrived
    assert target.runs is (True if arrived else None)
    if target.ram is not None:
        named = PageRuns((b.first_pfn + page, 1) for b in blocks for page in b.pages)
        assert not touched(target.ram.memory, _RAM).subtract(named)


def _blocks(data: bytes) -> list[_Block]:
    blocks: list[_Block] = []
    left = _MAX_PAGES
    for at in range(0, len(data) - 2, 3):
        where, page, value = data[at : at + 3]
        first_pfn = where % 32 * BLOCK_PAGES
        count = min(1 + (where >> 5), left)
        if not count or len(blocks) == _MAX_BLOCKS:
            break
        left -= count
        pages = {(page * 2 + n * (1 + value % 2)) % BLOCK_PAGES: value for n in range(count)}
        blocks.append(_Block(first_pfn, pages))
    return blocks


def _stream(name: str, blocks: list[_Block], *, one_round: bool) -> tuple[bytes, list[range]]:
    """Return all that a source sends, and where the contents of pages are in it."""
    checksum = Checksum(name)
    stream = bytearray(messages.Hello(CONFIG, name).record().encode())
    contents = []
    for number, block in enumerate(blocks, 1):
        bits = sum(1 << page for page in block.pages).to_bytes(messages.BITMAP_BYTES, "little")
        stream += messages.Pages(block.first_pfn, bits).record().encode()
        data = b"".join(bytes([block.pages[page]]) * PAGE_BYTES for page in sorted(block.pages))
        contents.append(range(len(stream), len(stream) + len(data)))
        stream += data + checksum.of(data).to_bytes(8, "little")
        if not one_round:
            stream += messages.RoundEnd(number).record().encode()
    for part in PARTS:
        stream += messages.DeviceState(part).record().encode()
    pages = sum(len(block.pages) for block in blocks)
    required = sum(not part.optional for part in PARTS)
    stream += messages.Ready(pages, required, True).record().encode()
    stream += messages.Commit().record().encode()
    return bytes(stream), contents


def _damage(stream: bytes, data: bytes, unprotected: list[range]) -> tuple[bytes, bool]:
    """Return the stream with its fault, and True if the guest may run all the same."""
    at = int.from_bytes(data[2:5], "little") % len(stream)
    match data[1] >> 1 & 3:
        case 0:
            return stream, True
        case 1:
            return stream[:at], False
        case 2:
            changed = bytes([1 << (data[5] & 7)])
        case _:
            changed = bytes([data[5], data[0], data[5], data[1]])
    damaged = bytearray(stream)
    touched_bytes = range(at, min(at + len(changed), len(stream)))
    for offset, bits in zip(touched_bytes, changed, strict=False):
        damaged[offset] ^= bits
    hidden = any(touched_bytes[0] in part and touched_bytes[-1] in part for part in unprotected)
    return bytes(damaged), hidden or damaged == stream


def _receive(target: FakeTarget, stream: bytes, *, buffered: bool, tcp: bool) -> bool:
    """Return True if the migration succeeds, and False after a `MigrationError`."""
    kind = _BufferedLink if buffered else MigrationLink
    with _tcp_sockets() if tcp else _unix_sockets() as (one, other):
        link = kind(SocketLink(other, local=True))
        one.setblocking(False)
        assert one.send(stream) == len(stream)
        one.shutdown(socket.SHUT_WR)
        try:
            DestinationMigration(target, link).run()
        except MigrationError:
            return False
    return True


@contextmanager
def _unix_sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


@contextmanager
def _tcp_sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    with other, one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        # Closed first, without the minute of TIME_WAIT: a fuzzer would run out of ports.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
        yield one, other


def _check_memory(target: FakeTarget, blocks: list[_Block]) -> None:
    last = {b.first_pfn + page: value for b in blocks for page, value in b.pages.items()}
    assert target.ram is not None
    for pfn, value in last.items():
        assert target.ram.page(pfn) == bytes([value]) * PAGE_BYTES
