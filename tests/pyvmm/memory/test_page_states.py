# SPDX-License-Identifier: Apache-2.0
"""The states of pages, counted by cells."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyvmm.memory.page_states import ROW, KnownPages, huge_pages, page_states
from pyvmm.memory.ram import Ram
from pyvmm.units import HUGE_PAGE_BYTES, MIB
from pyvmm_native import PAGE_BYTES
from pyvmm_native.host_pages import HostPageRecord
from pyvmm_native.runs import PageRuns

CELL = 512


@pytest.fixture(params=[True, False], ids=["transparent", "small pages"])
def ram(request: pytest.FixtureRequest) -> Iterator[Ram]:
    ram = Ram(64 * MIB, transparent=request.param)
    yield ram
    ram.close()


def rows(ram: Ram, known: KnownPages, cell: int = CELL) -> list[tuple[int, ...]]:
    data = page_states(ram.memory, ram.pages, ram.areas, known, cell)
    return [*ROW.iter_unpack(data)]


def test_every_page_is_resident_in_the_balloon_or_untouched(ram: Ram) -> None:
    ram.memory.write(3 * HUGE_PAGE_BYTES, bytes(HUGE_PAGE_BYTES))
    ram.memory.write(5 * HUGE_PAGE_BYTES, b"x" * HUGE_PAGE_BYTES)
    record = HostPageRecord(ram.pages, 1)
    inside = PageRuns([(4 * CELL, CELL), (5 * CELL, 10)])
    record.add(inside)
    ram.discard(inside)
    unused = PageRuns([(3 * CELL, 100)])
    found = rows(ram, KnownPages(record.bitmaps(), unused))
    assert [row[0] for row in found] == [n * HUGE_PAGE_BYTES for n in range(32)]
    resident, balloon, unused_pages, untouched = zip(*(row[1:5] for row in found), strict=True)
    assert (balloon[4], balloon[5], sum(balloon)) == (CELL, 10, CELL + 10)
    assert (unused_pages[3], sum(unused_pages)) == (100, 100)
    assert (resident[3], resident[4]) == (CELL, 0)
    assert resident[5] == CELL - 10
    assert (untouched[0], untouched[4], untouched[5]) == (CELL, 0, 0)
    for row in found:
        assert row[1] + row[2] + row[4] == CELL


def test_cells_have_any_size_and_skip_what_is_not_ram(ram: Ram) -> None:
    (row,) = rows(ram, KnownPages([], PageRuns()), 1 << 22)
    assert row[0] == 0
    assert sum(row[1:5:3]) == 64 * MIB // PAGE_BYTES


def test_the_parts_of_huge_pages_are_those_that_the_kernel_names(ram: Ram) -> None:
    ram.memory.write(0, b"x" * 8 * MIB)
    huge = huge_pages(ram.areas)
    assert not huge.subtract(ram.pages)
    assert huge.pages % CELL == 0
    if ram._advice != 14:  # MADV_HUGEPAGE
        assert not huge


def test_a_record_of_pages_has_a_bitmap_for_each_part_of_ram() -> None:
    ram = PageRuns([(0, 4096), (1 << 20, 8192)])
    record = HostPageRecord(ram, 1)
    inside = PageRuns([(5, 1), (100, 3), ((1 << 20) + 8000, 192)])
    record.add(inside)
    record.remove(PageRuns([(101, 1)]))
    union = PageRuns()
    for start, bits in record.bitmaps():
        union = union.union(PageRuns.from_bitmap(bits, start))
    assert union == inside.subtract(PageRuns([(101, 1)]))
    record.clear()
    assert not any(any(bits) for _, bits in record.bitmaps())
