# SPDX-License-Identifier: Apache-2.0
"""Writing a snapshot so that there is a whole one at every moment.

Everything goes to a file of another name in the same directory. It is synced, takes the name of the
old snapshot in one step (rename(2)), and then the directory is synced. Whatever happens before
that step leaves the old snapshot as it was; a writer that is killed leaves a file called
.NAME.….part besides. The file is readable by its owner only: it holds all of the guest's secrets.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pyvmm.errors import UserError
from pyvmm.snapshot.layout import (
    BITMAP_BYTES,
    PAGE_BYTES,
    PAGES_OFFSET,
    Block,
    Header,
    block_numbers,
    encode_blocks,
)
from pyvmm.state.records import Record
from pyvmm_native.memory import GuestMemory
from pyvmm_native.page_blocks import BLOCK_PAGES, store_block
from pyvmm_native.pages import bitmap
from pyvmm_native.runs import PageRuns

_NO_PAGES = bytes(BITMAP_BYTES)

OnPages = Callable[[int], None]
"""Called with the number of pages just written; may raise to give up."""


def write_snapshot(
    path: Path,
    memory: GuestMemory,
    pages: PageRuns,
    records: Sequence[Record],
    on_pages: OnPages = lambda pages: None,
) -> int:
    """Write `pages` of `memory` and `records` to `path`; returns the size of the file in bytes.

    Guest RAM must not change meanwhile. Raises `UserError`, with what was at `path` as it was, for
    a file that cannot be written.
    """
    try:
        with _replacement(path) as fd:
            blocks = _write_pages(fd, memory, pages, on_pages)
            tail = b"".join(record.encode() for record in (*records, encode_blocks(blocks)))
            header = Header(memory.size_bytes, pages.pages, len(tail))
            _write_all(fd, tail, header.records_offset)
            _write_all(fd, header.encode(), 0)
    except OSError as error:
        raise UserError(
            f"cannot write the snapshot {path}: {error.strerror}",
            "choose another place or make room; an older snapshot there is untouched",
        ) from error
    return header.file_bytes


@contextmanager
def _replacement(path: Path) -> Iterator[int]:
    """A new file that takes the place of `path` when the block has come to its end."""
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        try:
            yield fd
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _write_pages(fd: int, memory: GuestMemory, pages: PageRuns, on_pages: OnPages) -> list[Block]:
    blocks = []
    offset = PAGES_OFFSET
    for numbers in block_numbers(memory.size_bytes):
        bits = bitmap(pages, numbers.start * BLOCK_PAGES, len(numbers) * BLOCK_PAGES)
        for index, number in enumerate(numbers):
            own = bits[index * BITMAP_BYTES : (index + 1) * BITMAP_BYTES]
            if own == _NO_PAGES:
                continue
            crc = store_block(memory, number * BLOCK_PAGES, own, fd, offset)
            block = Block(number, crc, own, offset)
            blocks.append(block)
            offset += block.pages * PAGE_BYTES
            on_pages(block.pages)
    return blocks


def _write_all(fd: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
