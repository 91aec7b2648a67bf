# SPDX-License-Identifier: Apache-2.0
"""Decoders of 64-bit records against an oracle: a list of the frames that the records name."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm_native.runs import PageRuns
from tests.fuzz.page_oracle import Spans, hybrid_spans, range_spans

FRAME_LIMIT = 1 << 52
Frames = list[int]
from_hybrid, from_ranges = PageRuns.from_hybrid_records, PageRuns.from_range_records


def packed(words: list[int]) -> bytes:
    return struct.pack(f"<{len(words)}Q", *words)


def frames_of(spans: Spans | None) -> Frames | None:
    """Return every frame that the records name, in their order; None if one is invalid."""
    return None if spans is None else [p for start, n in spans for p in range(start, start + n)]


near = st.integers(0, 2000)
starts = st.one_of(near, near, st.integers(FRAME_LIMIT - 70, FRAME_LIMIT - 1))
words_of_bits = st.one_of(
    st.integers(0, 2**64 - 1),
    st.sampled_from([0, 1, 1 << 63, 2**64 - 1, 2**64 - 2, 2**63 - 1, 0x5555_5555_5555_5555]),
)
shifts = st.sampled_from([12, 12, 12, 13, 14, 15])


def odd(usual: st.SearchStrategy[int], *values: int) -> st.SearchStrategy[int]:
    return st.integers(0, 30).flatmap(lambda n: usual if n else st.sampled_from(values))


hybrid_records = st.one_of(
    st.builds(lambda start, shift: [start | shift << 52], starts, odd(shifts, 0, 11, 31, 63)),
    st.builds(
        lambda start, shift, length, bits: [start | shift << 52 | length << 58, bits],
        starts,
        odd(shifts, 0, 11, 31, 63),
        odd(st.just(8), 1, 7, 9, 16, 63),
        words_of_bits,
    ),
)
range_records = st.one_of(
    st.builds(lambda start, count: [start << 12 | count], starts, odd(st.integers(1, 70), 0)),
    st.builds(
        lambda start, count: [start << 12, count],
        starts,
        odd(st.integers(4096, 4100), 0, 1, 4095, 2**24 + 1, 2**64 - 1),
    ),
)


def joined(records: st.SearchStrategy[list[int]]) -> st.SearchStrategy[list[int]]:
    """Draw some records in any order; sometimes the last one lacks its second word."""
    return st.tuples(st.lists(records, max_size=12), st.integers(0, 9)).map(
        lambda drawn: list(chain(*drawn[0]))[: None if drawn[1] else -1]
    )


def check(
    decode: Callable[..., PageRuns], words: list[int], frames: Frames | None, offset: int
) -> None:
    data = memoryview(bytes(offset) + packed(words))[offset:]
    if frames is None:
        with pytest.raises(ValueError, match="at byte"):
            decode(data)
        return
    expected = PageRuns((pfn, 1) for pfn in frames)
    runs = decode(data)
    assert runs == expected
    assert (runs.pages, runs.largest) == (expected.pages, expected.largest)
    if len(set(frames)) == len(frames):
        assert decode(data, distinct=True) == expected
    else:
        with pytest.raises(ValueError, match="a page is named twice"):
            decode(data, distinct=True)


@given(joined(hybrid_records), st.integers(0, 7))
def test_hybrid_records_match_the_oracle(words: list[int], offset: int) -> None:
    check(from_hybrid, words, frames_of(hybrid_spans(words)), offset)


@given(joined(range_records), st.integers(0, 7))
def test_range_records_match_the_oracle(words: list[int], offset: int) -> None:
    check(from_ranges, words, frames_of(range_spans(words)), offset)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=6))
def test_any_words_decode_or_raise_value_error(words: list[int]) -> None:
    for decode in (from_hybrid, from_ranges):
        try:
            runs = decode(packed(words))
        except ValueError:
            continue
        assert all(start + count <= FRAME_LIMIT for start, count in runs)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([5 | 11 << 52], "page_shift"),
        ([5], "page_shift"),
        ([5 | 31 << 52], "page_shift"),
        ([5 | 12 << 52 | 4 << 58, 1], "bmap_len"),
        ([5 | 12 << 52 | 16 << 58, 1, 1], "bmap_len"),
        ([7 | 12 << 52, 5 | 12 << 52 | 8 << 58], "truncated record, at byte 8"),
        ([FRAME_LIMIT - 511 | 21 << 52], "beyond any address"),
        ([FRAME_LIMIT - 63 | 12 << 52 | 8 << 58, 1], "beyond any address"),
    ],
)
def test_invalid_hybrid_records_are_refused(words: list[int], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        from_hybrid(packed(words))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([5 << 12], "truncated record, at byte 0"),
        ([5 << 12, 0], "long count"),
        ([5 << 12, 4095], "long count"),
        ([5 << 12, (1 << 24) + 1], "long count"),
        ([5 << 12, 1 << 63], "long count"),
        ([FRAME_LIMIT - 1 << 12 | 2], "beyond any address"),
        ([FRAME_LIMIT - 4095 << 12, 4096], "beyond any address"),
    ],
)
def test_invalid_range_records_are_refused(words: list[int], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        from_ranges(packed(words))


def test_parts_of_words_are_refused() -> None:
    for decode in (from_hybrid, from_ranges):
        for length in (1, 4, 7, 9):
            with pytest.raises(ValueError, match="not an array of 64-bit records"):
                decode(bytes(length))
        assert decode(b"") == PageRuns()


def test_records_up_to_the_limits() -> None:
    top = FRAME_LIMIT - (1 << 18)
    assert list(from_hybrid(packed([top | 30 << 52]))) == [(top, 1 << 18)]
    assert list(from_ranges(packed([FRAME_LIMIT - (1 << 24) << 12, 1 << 24]))) == [
        (FRAME_LIMIT - (1 << 24), 1 << 24)
    ]
    assert list(from_ranges(packed([5 << 12 | 4095, 9000 << 12, 4096]))) == [
        (5, 4095), (9000, 4096),
    ]  # fmt: skip


def test_many_records_in_any_order_are_sorted() -> None:
    """The starts differ in every byte."""
    rng = random.Random(3)
    frames = [rng.randrange(FRAME_LIMIT // 3) * 3 for _ in range(5000)]
    expected = PageRuns((pfn, 1) for pfn in frames)
    assert from_hybrid(packed([pfn | 12 << 52 for pfn in frames])) == expected
    assert from_ranges(packed([pfn << 12 | 1 for pfn in frames])) == expected


@pytest.mark.resident_memory
def test_records_take_memory_only_for_their_runs() -> None:
    """The largest result of a guest's message, 2 Mi runs of 16 bytes, twice while it is sorted."""
    output = subprocess.run(
        [sys.executable, "-c", WORST_RECORDS], check=True, capture_output=True, text=True
    ).stdout
    runs, peak_kib = map(int, output.split())
    assert runs == 1 << 21
    assert peak_kib <= 80 * 1024


WORST_RECORDS = """
from pyvmm_native.runs import PageRuns
from tests.peak_memory import peak_kib
words = bytearray(b"\\x55" * (1 << 20))
for i in range(1 << 16):
    start = 64 * ((1 << 16) - i)
    words[16 * i : 16 * i + 8] = (start | 12 << 52 | 8 << 58).to_bytes(8, "little")
before = peak_kib()
runs = PageRuns.from_hybrid_records(words, distinct=True)
print(len(runs), peak_kib() - before)
"""


def test_records_that_change_while_read_give_valid_runs_or_are_refused() -> None:
    """The runs mix several moments, but are ordered and separate."""
    bits = packed([64 | 12 << 52 | 8 << 58, 0x5555_5555_5555_5555] * 4096)
    blocks = packed([128 | 12 << 52] * 8192)
    records = bytearray(bits)
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for pattern in (blocks, bits):
                records[:] = pattern

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(300):
            try:
                runs = from_hybrid(records)
            except ValueError:
                continue
            assert runs.union(runs) == runs
    finally:
        stop.set()
        changer.join()
