# SPDX-License-Identifier: Apache-2.0
"""Blocks that do not fit into a file: the kernel writes a part of them, then refuses the rest."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvmm_native.checksum import crc32c
from pyvmm_native.memory import GuestMemory
from pyvmm_native.page_blocks import BLOCK_PAGES, store_block
from pyvmm_native.pages import bitmap
from pyvmm_native.runs import PageRuns
from tests.pyvmm.files.small_disk import run_on_small_disk

PAGE = 4096
RUNS = [(0, 7), (9, 1), (11, 200), (300, 212)]
"""Several parts of memory, in several pieces of the file."""
OFFSET = 123


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Limit files to `size_bytes`; Python ignores the signal SIGXFSZ, so writes beyond fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def patterned_block() -> tuple[GuestMemory, bytes, bytes]:
    """Return memory, the bitmap of some of its pages, and their contents."""
    memory = GuestMemory([(0, mmap.mmap(-1, BLOCK_PAGES * PAGE))])
    for pfn in range(BLOCK_PAGES):
        memory.write(pfn * PAGE, os.urandom(PAGE))
    contents = b"".join(memory.read(first * PAGE, count * PAGE) for first, count in RUNS)
    return memory, bitmap(PageRuns(RUNS), 0, BLOCK_PAGES), contents


STORED = sum(count for _, count in RUNS) * PAGE


@pytest.mark.parametrize("write_behind", [False, True])
@pytest.mark.parametrize(
    "room", [0, 1, PAGE - 1, 7 * PAGE, 7 * PAGE + 1, STORED // 2, STORED - PAGE, STORED - 1]
)
def test_a_file_that_may_not_grow_is_an_error_after_the_part_that_fits(
    room: int, write_behind: bool
) -> None:
    """Wherever the limit lies: pwritev(2) writes up to it, and the next call fails."""
    memory, bits, contents = patterned_block()
    with tempfile.TemporaryFile() as file:
        with largest_file(OFFSET + room), pytest.raises(OSError, match="File too large") as raised:
            store_block(memory, 0, bits, file.fileno(), OFFSET, write_behind=write_behind)
        assert raised.value.errno == errno.EFBIG
        assert os.fstat(file.fileno()).st_size == (OFFSET + room if room else 0)
        assert os.pread(file.fileno(), STORED, OFFSET) == contents[:room]
        crc = store_block(memory, 0, bits, file.fileno(), OFFSET, write_behind=write_behind)
        assert os.pread(file.fileno(), STORED + 1, OFFSET) == contents
        assert crc == crc32c(contents)


def test_a_block_fits_exactly_into_the_largest_file() -> None:
    memory, bits, contents = patterned_block()
    with tempfile.TemporaryFile() as file:
        with largest_file(OFFSET + STORED):
            assert store_block(memory, 0, bits, file.fileno(), OFFSET) == crc32c(contents)
        assert os.pread(file.fileno(), STORED + 1, OFFSET) == contents


def test_a_full_disk_is_an_error_and_room_on_it_is_used(tmp_path: Path) -> None:
    script = """
import errno, os, pathlib, sys
from pyvmm_native.checksum import crc32c
from pyvmm_native.page_blocks import store_block
from tests.native.test_full_files import OFFSET, STORED, patterned_block
disk = pathlib.Path(sys.argv[1])
memory, bits, contents = patterned_block()
(disk / "filler").write_bytes(bytes(2 << 20))
with open(disk / "file", "w+b", buffering=0) as file:
    try:
        store_block(memory, 0, bits, file.fileno(), OFFSET)
    except OSError as error:
        print(errno.errorcode[error.errno])
    part = os.pread(file.fileno(), STORED, OFFSET)
    assert 0 < len(part) < STORED, "a part was written"
    assert part == contents[:len(part)]
    (disk / "filler").unlink()
    assert store_block(memory, 0, bits, file.fileno(), OFFSET) == crc32c(contents)
    assert os.pread(file.fileno(), STORED + 1, OFFSET) == contents
"""
    assert run_on_small_disk(tmp_path, 3, script) == "ENOSPC\n"
