# SPDX-License-Identifier: Apache-2.0
"""PageRuns against its oracle: a Python set of page frame numbers."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyvmm_native.page_requests import decode
from pyvmm_native.runs import PageRuns

FRAME_LIMIT = 1 << 52

FrameSet = set[int]

# Chunks of equal bytes make runs that cross words; single random bytes make ragged ones.
chunk = st.tuples(st.sampled_from([0, 0xFF]), st.integers(0, 40)).map(
    lambda pair: bytes([pair[0]]) * pair[1]
)
bitmaps = st.lists(st.one_of(chunk, st.binary(max_size=12)), max_size=8).map(b"".join)

frames = st.integers(0, 300)
pfn_lists = st.one_of(
    st.lists(st.one_of(frames, st.integers(0, (1 << 32) - 1)), max_size=200),
    st.lists(frames, max_size=200).map(sorted),
    st.lists(frames, max_size=200).map(lambda pfns: sorted(pfns, reverse=True)),
    st.builds(lambda start, n: list(range(start, start + n)), frames, st.integers(0, 100)),
    st.builds(lambda start, n: list(range(start + n, start, -1)), frames, st.integers(0, 100)),
)
page_sets = st.lists(st.tuples(frames, st.integers(1, 20)), max_size=30)


def frames_of_bitmap(bitmap: bytes, start_pfn: int) -> FrameSet:
    return {start_pfn + i for i in range(8 * len(bitmap)) if bitmap[i // 8] >> i % 8 & 1}


def frames_of(runs: list[tuple[int, int]]) -> FrameSet:
    return {pfn for start, count in runs for pfn in range(start, start + count)}


def assert_holds(runs: PageRuns, expected: FrameSet) -> None:
    """Assert that `runs` holds exactly the expected frames, in its canonical form."""
    pairs = list(runs)
    assert frames_of(pairs) == expected
    assert all(count > 0 for _, count in pairs)
    assert all(a + n < b for (a, n), (b, _) in pairwise(pairs))
    assert len(runs) == len(pairs)
    assert bool(runs) == bool(expected)
    assert runs.pages == len(expected)
    assert runs.largest == max((count for _, count in pairs), default=0)
    assert runs == PageRuns(reversed(pairs))


@given(bitmap=bitmaps, start_pfn=st.integers(0, 1 << 40), offset=st.integers(0, 8))
@example(bitmap=b"\xff" * 16 + b"\x01", start_pfn=64, offset=3)
def test_from_bitmap_finds_the_set_bits(bitmap: bytes, start_pfn: int, offset: int) -> None:
    unaligned = memoryview(bytes(offset) + bitmap)[offset:]
    runs = PageRuns.from_bitmap(unaligned, start_pfn)
    assert_holds(runs, frames_of_bitmap(bitmap, start_pfn))


@given(pfns=pfn_lists, offset=st.integers(0, 4))
def test_a_pfn_array_names_each_frame_once(pfns: list[int], offset: int) -> None:
    def decoded(pfns: list[int]) -> PageRuns:
        array = struct.pack(f"<{len(pfns)}I", *pfns)
        return decode("standard", memoryview(bytes(offset) + array)[offset:])

    once = list(dict.fromkeys(pfns))
    if once:
        assert_holds(decoded(once), set(pfns))
    if once != pfns or not pfns:
        with pytest.raises(ValueError, match="twice" if pfns else "0 bytes"):
            decoded(pfns)


@given(page_sets)
def test_the_constructor_normalises(pairs: list[tuple[int, int]]) -> None:
    assert_holds(PageRuns(pairs), frames_of(pairs))


@given(page_sets, page_sets)
def test_set_operations_match_python_sets(
    left: list[tuple[int, int]], right: list[tuple[int, int]]
) -> None:
    a, b = PageRuns(left), PageRuns(right)
    in_a, in_b = frames_of(left), frames_of(right)
    assert_holds(a.union(b), in_a | in_b)
    assert_holds(a.intersect(b), in_a & in_b)
    assert_holds(a.subtract(b), in_a - in_b)
    assert (a == b) == (in_a == in_b)
    # The operands are unchanged.
    assert_holds(a, in_a)
    assert_holds(b, in_b)


@given(page_sets, st.integers(1, 40))
def test_whole_keeps_only_whole_units(pairs: list[tuple[int, int]], unit: int) -> None:
    held = frames_of(pairs)
    whole = {
        pfn for pfn in held if held.issuperset(range(pfn // unit * unit, pfn // unit * unit + unit))
    }
    assert_holds(PageRuns(pairs).whole(unit), whole)


@given(page_sets, st.integers(1, 9))
def test_scaled_multiplies_frames(pairs: list[tuple[int, int]], factor: int) -> None:
    scaled = {pfn * factor + i for pfn in frames_of(pairs) for i in range(factor)}
    assert_holds(PageRuns(pairs).scaled(factor), scaled)


@given(page_sets, st.integers(1, 70), st.integers(0, 12))
@example(pairs=[(0, 300)], pages_per_cell=64, cells=5)
def test_per_cell_counts_frames(
    pairs: list[tuple[int, int]], pages_per_cell: int, cells: int
) -> None:
    held = frames_of(pairs)
    expected = [
        len(held.intersection(range(cell * pages_per_cell, (cell + 1) * pages_per_cell)))
        for cell in range(cells)
    ]
    assert PageRuns(pairs).per_cell(pages_per_cell, cells) == expected


@given(page_sets)
def test_membership_matches_python_sets(pairs: list[tuple[int, int]]) -> None:
    runs, held = PageRuns(pairs), frames_of(pairs)
    assert {pfn for pfn in range(-2, 330) if pfn in runs} == held
    assert 1 << 64 not in runs


@given(page_sets)
def test_repr_is_an_expression_while_short(pairs: list[tuple[int, int]]) -> None:
    runs = PageRuns(pairs)
    if len(runs) <= 8:
        assert eval(repr(runs)) == runs
    else:
        assert f"{len(runs)} runs of {runs.pages} pages" in repr(runs)


def test_frames_up_to_the_limit() -> None:
    top = FRAME_LIMIT - 64
    runs = PageRuns.from_bitmap(b"\xff" * 8, top)
    assert list(runs) == [(top, 64)]
    everything = PageRuns([(0, FRAME_LIMIT)])
    assert everything.pages == FRAME_LIMIT
    assert everything.intersect(runs) == runs
    assert everything.whole(FRAME_LIMIT) == everything
    assert list(everything.subtract(runs)) == [(0, top)]
    assert everything.per_cell(FRAME_LIMIT, 2) == [FRAME_LIMIT, 0]
    assert runs.per_cell(top, 3) == [0, 64, 0]
    assert list(PageRuns([(1, 1)]).scaled(FRAME_LIMIT // 2)) == [
        (FRAME_LIMIT // 2, FRAME_LIMIT // 2)
    ]


def test_a_large_bitmap_of_many_runs_is_decoded() -> None:
    runs = PageRuns.from_bitmap(b"\x55" * 32768)
    assert (len(runs), runs.pages, runs.largest) == (131072, 131072, 1)
    assert list(runs)[-1] == (262142, 1)
    assert len(runs.union(PageRuns.from_bitmap(b"\xaa" * 32768))) == 1


@pytest.mark.resident_memory
def test_a_bitmap_takes_memory_only_for_its_runs() -> None:
    """The largest result of a guest's bitmap, 4 Mi runs of 16 bytes, in a process of its own."""
    output = subprocess.run(
        [sys.executable, "-c", WORST_BITMAP], check=True, capture_output=True, text=True
    ).stdout
    runs, peak_kib = map(int, output.split())
    assert runs == 1 << 22
    assert peak_kib <= 80 * 1024


WORST_BITMAP = """
from pyvmm_native.runs import PageRuns
from tests.peak_memory import peak_kib
bitmap = b"\\x55" * (1 << 20)
before = peak_kib()
runs = PageRuns.from_bitmap(bitmap).scaled(1).whole(1)
print(len(runs), peak_kib() - before)
"""


def test_a_bitmap_that_changes_while_read_gives_valid_runs() -> None:
    """The runs mix several moments, but are ordered, separate and inside the bitmap."""
    bitmap = bytearray(1 << 20)
    stop = threading.Event()

    def change() -> None:
        patterns = [byte * len(bitmap) for byte in (b"\x55", b"\x00", b"\xff", b"\x5a")]
        while not stop.is_set():
            for pattern in patterns:
                bitmap[:] = pattern

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(20):
            runs = PageRuns.from_bitmap(bitmap)
            assert runs.union(runs) == runs
            assert runs.subtract(PageRuns([(0, 8 * len(bitmap))])).pages == 0
    finally:
        stop.set()
        changer.join()


@pytest.mark.parametrize(
    "pairs",
    [[(0, 0)], [(5, -1)], [(-1, 3)], [(0, FRAME_LIMIT + 1)], [(FRAME_LIMIT, 1)], [(1 << 70, 1)]],
)
def test_the_constructor_refuses_invalid_runs(pairs: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="not a run"):
        PageRuns(pairs)


def test_decoders_refuse_invalid_input() -> None:
    with pytest.raises(ValueError, match="bitmap of 8 bytes"):
        PageRuns.from_bitmap(bytes(8), FRAME_LIMIT - 63)
    with pytest.raises(ValueError, match="bitmap of 0 bytes"):
        PageRuns.from_bitmap(b"", -1)
    for length in (1, 2, 3, 5):
        with pytest.raises(ValueError, match=f"{length} bytes are not an array of 32-bit"):
            decode("standard", bytes(length))


def test_invalid_units_and_factors_are_refused() -> None:
    runs = PageRuns([(1, 2)])
    for factor in (0, -1, FRAME_LIMIT // 2, 1 << 80):
        with pytest.raises(ValueError, match="times"):
            runs.scaled(factor)
    for unit in (0, -4, 1 << 80):
        with pytest.raises(ValueError, match="units"):
            runs.whole(unit)
    for pages_per_cell, cells in ((0, 1), (-1, 1), (1 << 53, 1), (1, -1), (1, 1 << 60)):
        with pytest.raises(ValueError, match="cells of"):
            runs.per_cell(pages_per_cell, cells)


def test_runs_are_not_hashable() -> None:
    with pytest.raises(TypeError):
        hash(PageRuns())
