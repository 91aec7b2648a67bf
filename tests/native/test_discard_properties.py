# SPDX-License-Identifier: Apache-2.0
"""Discarding over several regions, some of which touch, against a Python set of page frames."""

from __future__ import annotations

from mmap import MADV_NOHUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, mmap

from hypothesis import given
from hypothesis import strategies as st

from pyvmm_native.discard import discard
from pyvmm_native.memory import GuestMemory
from pyvmm_native.runs import PageRuns

PAGE = 4096
FILLED = b"\x5a" * PAGE

# (frames left out before the region, its frames)
layouts = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=4)
runs_lists = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8)), max_size=12)


def filled_regions(layout: list[tuple[int, int]]) -> list[tuple[int, mmap]]:
    """Return (first frame, memory) of each region."""
    regions, frame = [], 0
    for gap, count in layout:
        frame += gap
        area = mmap(-1, count * PAGE, flags=MAP_PRIVATE | MAP_ANONYMOUS)
        area.madvise(MADV_NOHUGEPAGE)
        area[:] = FILLED * count
        regions.append((frame, area))
        frame += count
    return regions


@given(layouts, runs_lists)
def test_all_runs_are_discarded_or_none(
    layout: list[tuple[int, int]], pairs: list[tuple[int, int]]
) -> None:
    regions = filled_regions(layout)
    memory = GuestMemory([(frame * PAGE, area) for frame, area in regions])
    ram = {frame + i for frame, area in regions for i in range(len(area) // PAGE)}
    named = {pfn for start, count in pairs for pfn in range(start, start + count)}
    try:
        taken = discard(memory, PageRuns(pairs)).bytes
    except ValueError:
        assert not named <= ram
        taken, named = 0, set()
    assert named <= ram
    assert taken == len(named) * PAGE
    for frame, area in regions:
        for i in range(len(area) // PAGE):
            expected = bytes(PAGE) if frame + i in named else FILLED
            assert area[i * PAGE : (i + 1) * PAGE] == expected
