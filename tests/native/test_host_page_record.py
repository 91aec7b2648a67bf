# SPDX-License-Identifier: Apache-2.0
"""The record of pages in the balloon by host page, compared with a set of pages."""

from __future__ import annotations

from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm_native.host_pages import HostPageRecord
from pyvmm_native.runs import PageRuns

RAM = PageRuns([(3, 200), (1024, 300)])
"""Neither part begins or ends with a whole host page of any size that is tested."""
Step: TypeAlias = tuple[str, PageRuns]


def pages_of(runs: PageRuns) -> set[int]:
    return {pfn for start, count in runs for pfn in range(start, start + count)}


def complete(inside: set[int], size: int) -> set[int]:
    """Return the pages of `inside` that form complete host pages."""
    return {p for p in inside if all(p // size * size + i in inside for i in range(size))}


_run = st.sampled_from(sorted(pages_of(RAM))).flatmap(
    lambda start: st.tuples(st.just(start), st.sampled_from([1, 2, 7, 16, 33, 64, 130]))
)
_step = st.tuples(
    st.sampled_from(["add", "add", "remove", "clear"]),
    st.lists(_run, max_size=6).map(lambda pairs: PageRuns(pairs).intersect(RAM)),
)


@given(st.sampled_from([1, 2, 3, 16, 64, 100, 128]), st.lists(_step, max_size=20))
def test_the_record_matches_a_set_of_pages(size: int, steps: list[Step]) -> None:
    """A host page is reported exactly when the last of its pages comes in, or the first leaves."""
    record, inside = HostPageRecord(RAM, size), set[int]()
    for action, runs in steps:
        before = complete(inside, size)
        if action == "add":
            inside |= pages_of(runs)
            assert pages_of(record.add(runs)) == complete(inside, size) - before
        elif action == "remove":
            inside -= pages_of(runs)
            assert pages_of(record.remove(runs)) == before - complete(inside, size)
        else:
            inside.clear()
            record.clear()
        assert record.pages == len(inside)
        assert record.complete_pages == len(complete(inside, size))


@pytest.mark.parametrize("runs", [[(2, 2)], [(202, 2)], [(10, 1), (900, 1)], [(1 << 51, 1)]])
def test_pages_outside_ram_change_nothing(runs: list[tuple[int, int]]) -> None:
    record = HostPageRecord(RAM, 16)
    record.add(PageRuns([(10, 3)]))
    for change in (record.add, record.remove):
        with pytest.raises(ValueError, match="are not RAM"):
            change(PageRuns(runs))
    assert record.pages == 3


def test_parts_of_one_host_page_in_two_parts_of_ram_are_never_complete() -> None:
    ram = PageRuns([(0, 8), (9, 7)])
    record = HostPageRecord(ram, 16)
    assert not record.add(ram)
    assert (record.pages, record.complete_pages) == (15, 0)


@pytest.mark.parametrize("size", [0, -1, (1 << 18) + 1])
def test_an_impossible_size_of_a_host_page_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="a host page of"):
        HostPageRecord(RAM, size)


def test_all_of_16_gib_in_and_out() -> None:
    ram = PageRuns([(0, 786432), (1 << 20, 13 << 18)])
    record = HostPageRecord(ram, 512)
    every_other = PageRuns.from_bitmap(b"\x55" * (786432 // 8))
    assert not record.add(every_other)
    assert record.add(ram) == ram
    assert record.remove(every_other) == PageRuns([(0, 786432)])
    assert record.complete_pages == 13 << 18
