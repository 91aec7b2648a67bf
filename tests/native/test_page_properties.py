# SPDX-License-Identifier: Apache-2.0
"""Touched and nonzero pages, and blocks of pages in a file, against plain Python."""

from __future__ import annotations

import mmap
import os
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm_native.checksum import crc32c
from pyvmm_native.memory import GuestMemory
from pyvmm_native.page_blocks import (
    BLOCK_PAGES,
    ChecksumError,
    check_stored,
    gather_block,
    load_block,
    scatter_block,
    store_block,
)
from pyvmm_native.pages import bitmap, nonzero, touched
from pyvmm_native.runs import PageRuns

PAGES = 1100
HIGH_PFN = 2048
HIGH_PAGES = 40


def anonymous(pages: int) -> mmap.mmap:
    area = mmap.mmap(-1, pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    return area


def new_memory() -> GuestMemory:
    return GuestMemory([(0, anonymous(PAGES)), (HIGH_PFN * 4096, anonymous(HIGH_PAGES))])


ALL = PageRuns([(0, PAGES), (HIGH_PFN, HIGH_PAGES)])
page_numbers = st.sets(
    st.integers(0, PAGES - 1) | st.integers(HIGH_PFN, HIGH_PFN + HIGH_PAGES - 1), max_size=60
)


def runs(numbers: set[int]) -> PageRuns:
    return PageRuns((number, 1) for number in numbers)


@given(page_numbers, page_numbers, st.integers(0, 4095))
def test_touched_and_nonzero_pages_are_found(
    written: set[int], zeroed: set[int], offset: int
) -> None:
    memory = new_memory()
    for number in written:
        memory.write(number * 4096 + offset, b"\1")
    for number in zeroed:
        memory.write(number * 4096, bytes(4096))
    assert touched(memory, ALL) == runs(written | zeroed)
    assert nonzero(memory, ALL) == runs(written - zeroed)
    half = PageRuns([(0, PAGES // 2)])
    assert nonzero(memory, half) == runs(written - zeroed).intersect(half)


@given(page_numbers)
def test_querying_touched_pages_touches_none(written: set[int]) -> None:
    memory = new_memory()
    for number in written:
        memory.write(number * 4096, b"\1")
    nonzero(memory, touched(memory, ALL))
    assert touched(memory, ALL) == runs(written)


@given(page_numbers, st.integers(0, PAGES), st.integers(0, 300))
def test_a_bitmap_is_the_inverse_of_from_bitmap(pages: set[int], start: int, eighth: int) -> None:
    bits = bitmap(runs(pages), start, 8 * eighth)
    assert len(bits) == eighth
    assert PageRuns.from_bitmap(bits, start) == runs(
        {pfn for pfn in pages if start <= pfn < start + 8 * eighth}
    )


@given(st.sets(st.integers(0, BLOCK_PAGES - 1)), st.binary(min_size=1, max_size=64))
def test_a_block_survives_storing_and_loading(pages: set[int], data: bytes) -> None:
    memory, copy = new_memory(), new_memory()
    for number in pages:
        memory.write((BLOCK_PAGES + number) * 4096 % (PAGES * 4096 - 4096), data)
    inside = {number for number in pages if BLOCK_PAGES + number < PAGES}
    bits = bitmap(runs({BLOCK_PAGES + number for number in inside}), BLOCK_PAGES, BLOCK_PAGES)
    with tempfile.TemporaryFile() as file:
        crc = store_block(memory, BLOCK_PAGES, bits, file.fileno(), 123)
        stored = os.pread(file.fileno(), 1 << 22, 123)
        whole = [memory.read((BLOCK_PAGES + number) * 4096, 4096) for number in sorted(inside)]
        assert stored == b"".join(whole)
        assert crc == crc32c(stored)
        with pytest.raises(ChecksumError):
            load_block(copy, BLOCK_PAGES, bits, file.fileno(), 123, crc ^ 1)
        with pytest.raises(ChecksumError):
            check_stored(BLOCK_PAGES, bits, file.fileno(), 123, crc ^ 1)
        check_stored(BLOCK_PAGES, bits, file.fileno(), 123, crc)
        copy = new_memory()
        load_block(copy, BLOCK_PAGES, bits, file.fileno(), 123, crc)
        assert nonzero(copy, ALL).intersect(
            PageRuns([(BLOCK_PAGES, BLOCK_PAGES)]).intersect(ALL)
        ) == nonzero(memory, ALL).intersect(runs({BLOCK_PAGES + n for n in inside}))
        if stored:
            file.truncate(123 + len(stored) - 1)
            with pytest.raises(OSError, match="Input/output error"):
                load_block(copy, BLOCK_PAGES, bits, file.fileno(), 123, crc)
            with pytest.raises(OSError, match="Input/output error"):
                check_stored(BLOCK_PAGES, bits, file.fileno(), 123, crc)


@given(st.sets(st.integers(0, BLOCK_PAGES - 1)), st.binary(min_size=1, max_size=64))
def test_a_block_survives_gathering_and_scattering(pages: set[int], data: bytes) -> None:
    memory, copy = new_memory(), new_memory()
    for number in pages:
        memory.write(number * 4096, data)
    bits = bitmap(runs(pages), 0, BLOCK_PAGES)
    room = bytearray(b"!" * (len(pages) * 4096 + 1))
    assert gather_block(memory, 0, bits, room) == len(pages) * 4096
    assert room == b"".join(memory.read(n * 4096, 4096) for n in sorted(pages)) + b"!"
    with pytest.raises(ValueError, match="bytes for pages of"):
        scatter_block(copy, 0, bits, room)
    assert not touched(copy, ALL)
    scatter_block(copy, 0, bits, memoryview(room)[:-1])
    assert nonzero(copy, ALL) == nonzero(memory, ALL)
    for number in pages:
        assert copy.read(number * 4096, 4096) == memory.read(number * 4096, 4096)
    if pages:
        with pytest.raises(ValueError, match="no room"):
            gather_block(memory, 0, bits, room[:-2])


@pytest.mark.parametrize("first_pfn", [1, 1024 + 512, 4096, 1 << 41])
def test_invalid_blocks_are_refused(first_pfn: int) -> None:
    memory = new_memory()
    with tempfile.TemporaryFile() as file, pytest.raises(ValueError, match="block"):
        store_block(memory, first_pfn, b"\xff" * 64, file.fileno(), 0)
    with tempfile.TemporaryFile() as file, pytest.raises(ValueError, match="block"):
        load_block(memory, 0, b"\xff" * 63, file.fileno(), 0, 0)
    for copied in (gather_block, scatter_block):
        with pytest.raises(ValueError, match="block"):
            copied(memory, first_pfn, b"\xff" * 64, bytearray(BLOCK_PAGES * 4096))


@pytest.mark.parametrize("outside", [[(PAGES, 1)], [(0, PAGES + 1)], [(1 << 51, 1)]])
def test_pages_outside_ram_are_refused(outside: list[tuple[int, int]]) -> None:
    memory = new_memory()
    for look in (touched, nonzero):
        with pytest.raises(ValueError, match="not wholly inside guest RAM"):
            look(memory, PageRuns(outside))
