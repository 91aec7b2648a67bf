# SPDX-License-Identifier: Apache-2.0
"""The hybrid and ranges dialects as pure functions: request bytes in, pages or BadPayload out."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from devices.balloon import records
from devices.balloon.dialects import BITMAP, HYBRID, RANGES, STANDARD, Dialect
from devices.errors import BadPayload
from devices.testing.balloon.driver import INFLATE, BalloonDriver, page_request
from devices.testing.balloon.requests import (
    hybrid_records,
    page_runs,
    pfn_array,
    range_records,
    record_request,
)
from devices.testing.ram import AnonymousRam
from pyvmm.units import GIB, MIB
from pyvmm_native.runs import PageRuns
from tests.devices.balloon.misc_host import records_of
from tests.devices.balloon.posted_encoders import (
    free_list_records,
    hybrid_messages,
    range_messages,
)

BOTH = pytest.mark.parametrize("dialect", [HYBRID, RANGES], ids=lambda each: each.name)

# Ranges of up to a few blocks, with odd ends and holes of every size between them.
spans = st.lists(
    st.tuples(
        st.sampled_from([1, 1, 2, 3, 61, 63, 64, 65, 128, 4097, 9000]),
        st.sampled_from([1, 1, 2, 5, 60, 63, 64, 65, 100, 127, 192, 1000, 4095, 4097, 5000]),
    ),
    min_size=1,
    max_size=12,
)


def pages_of(start: int, spans: list[tuple[int, int]]) -> list[int]:
    pfns: list[int] = []
    for hole, count in spans:
        pfns += range(start + hole, start + hole + count)
        start += hole + count
    return pfns


def payload(words: list[int], **header: int) -> bytes:
    return b"".join(record_request(words, **header))


def union(messages: list[list[int]], dialect: Dialect) -> PageRuns:
    """Return the pages of all messages; none may name a page that another one names."""
    pages = PageRuns()
    for words in messages:
        more = dialect.decode(payload(words))
        assert not pages.intersect(more)
        pages = pages.union(more)
    return pages


@settings(deadline=None, max_examples=60)
@given(spans, st.integers(0, 5000))
def test_pages_in_any_form_decode_to_the_pages_sent(
    drawn: list[tuple[int, int]], start: int
) -> None:
    pfns = pages_of(start, drawn)
    expected = PageRuns(page_runs(pfns))
    assert union(hybrid_messages(pfns), HYBRID) == expected
    assert union(range_messages(pfns), RANGES) == expected
    assert HYBRID.decode(payload(hybrid_records(pfns))) == expected
    assert RANGES.decode(payload(range_records(pfns))) == expected


def test_blocks_of_the_posted_encoder_need_no_alignment() -> None:
    pfns = range(64, 64 + 1024)
    assert hybrid_messages(pfns) == [[64 | 22 << 52]]
    driver = BalloonDriver(HYBRID).start()
    driver.send(INFLATE, record_request(hybrid_messages(pfns)[0]))
    assert driver.board.ram.discarded_pages == PageRuns([(64, 1024)])


def test_messages_of_the_posted_encoders_are_as_long_as_their_buffers() -> None:
    scattered = range(0, 3 * 262_144, 64)
    for messages, dialect in (
        (hybrid_messages(scattered), HYBRID),
        (range_messages(scattered), RANGES),
    ):
        assert len(messages) > 2
        assert union(messages, dialect) == PageRuns((pfn, 1) for pfn in scattered)


def test_only_whole_host_pages_are_discarded() -> None:
    ram = AnonymousRam((0, 64 * MIB))
    ram.host_page_pages = 512
    driver = BalloonDriver(HYBRID, ram=ram).start()
    driver.send(INFLATE, record_request([500 | 22 << 52, 512 * 8 | 21 << 52]))
    assert ram.discarded_pages == PageRuns([(512, 512), (4096, 512)])
    assert driver.board.balloon.counters.inflate.pages == 1024 + 512


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 10)), max_size=30))
def test_free_blocks_in_any_order_may_repeat_in_a_response(blocks: list[tuple[int, int]]) -> None:
    expected = PageRuns((pfn, 1 << order) for pfn, order in blocks)
    hybrid = HYBRID.responses
    ranges = RANGES.responses
    assert hybrid is not None
    assert ranges is not None
    message = hybrid.read(payload(free_list_records(blocks), req_id=9, flag=1, cmd=2))
    assert message[:4] == (2, 1, 9, 8 * len(blocks))
    assert message.decode() == expected
    words = [pfn << 12 | 1 << order for pfn, order in blocks]
    assert ranges.read(payload(words)).decode() == expected


@BOTH
def test_a_page_named_twice_is_refused(dialect: Dialect) -> None:
    for again in ([100, 101], [99, 100], [100]):
        words = [word for pfns in ([100], again) for word in records_of(dialect, pfns)]
        with pytest.raises(BadPayload, match="a page is named twice"):
            dialect.decode(payload(words))


def test_a_block_and_a_bitmap_may_not_name_a_page_both() -> None:
    words = [64 | 18 << 52, 0 | 12 << 52 | 8 << 58, 1 << 63, 0 | 13 << 52 | 8 << 58, 1 << 40]
    with pytest.raises(BadPayload, match="named twice"):
        HYBRID.decode(payload(words))
    words[-1] = 1 << 30
    assert HYBRID.decode(payload(words)).pages == 64 + 1 + 2


# Headers.


@BOTH
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"cmd": 1}, "unknown command 1"),
        ({"cmd": 255}, "unknown command 255"),
        ({"flag": 1}, "unknown flag 0x1"),
        ({"flag": 128}, "unknown flag 0x80"),
        ({"req_id": 1}, "id 1 is not 0"),
        ({"req_id": 0xFFFF}, "id 65535 is not 0"),
        ({"data_len": 0}, "data_len 0"),
        ({"data_len": 4}, "data_len 4 is not a multiple of 8"),
        ({"data_len": 17}, "data_len 17 is not a multiple of 8"),
        ({"data_len": 72}, "data_len 72 but only 16 bytes supplied"),
        ({"data_len": 0xFFFF_FFF8}, "but only 16 bytes supplied"),
        ({"supplied_bytes": 15}, "data_len 16 but only 15 bytes supplied"),
        ({"supplied_bytes": 0}, "data_len 16 but only 0 bytes supplied"),
    ],
)
def test_malformed_headers_are_refused(dialect: Dialect, change: dict[str, int], why: str) -> None:
    words = records_of(dialect, [5, 70])[:2] if dialect is RANGES else hybrid_records([5])
    with pytest.raises(BadPayload, match=why):
        dialect.decode(payload(words, **change))


@BOTH
@pytest.mark.parametrize("length", [0, 1, 7])
def test_a_short_header_is_refused(dialect: Dialect, length: int) -> None:
    with pytest.raises(BadPayload, match="too short for a header"):
        dialect.decode(bytes(length))


@BOTH
def test_bytes_after_the_records_are_ignored(dialect: Dialect) -> None:
    request = payload(records_of(dialect, [5]), supplied_bytes=32768)
    assert dialect.decode(request) == PageRuns([(5, 1)])
    assert dialect.decode(request + b"\xff" * 9) == PageRuns([(5, 1)])


@BOTH
def test_invalid_records_are_bad_payloads(dialect: Dialect) -> None:
    last = 7 | 12 << 52 | 8 << 58 if dialect is HYBRID else 7 << 12
    words = [records_of(dialect, list(range(64)))[0], last]
    with pytest.raises(BadPayload, match="truncated record, at byte 8 of the records"):
        dialect.decode(payload(words))


def test_the_limits_of_a_message() -> None:
    assert HYBRID.max_request_bytes == RANGES.max_request_bytes == 8 + (1 << 20)
    words = [pfn << 12 | 1 for pfn in range(0, 2 << 17, 2)]
    assert len(payload(words)) == RANGES.max_request_bytes
    assert RANGES.decode(payload(words)).pages == 1 << 17


@BOTH
def test_requests_longer_than_the_limit_are_refused_whole(dialect: Dialect) -> None:
    driver = BalloonDriver(dialect).start()
    request = page_request(dialect, range(64))
    used = driver.send(INFLATE, [request[0], request[1] + bytes(1 << 20)])
    assert [each.length for each in used] == [0]
    assert driver.board.balloon.counters.inflate.bad_payloads == 1
    assert not driver.board.ram.discarded


@BOTH
def test_a_page_outside_ram_refuses_the_whole_request(dialect: Dialect) -> None:
    driver = BalloonDriver(dialect, ram=AnonymousRam((0, 16 * MIB), (32 * MIB, 20 * MIB))).start()
    for pfns in ([4096], range(4000, 4097), [5, 1 << 40]):
        assert [used.length for used in driver.inflate(pfns)] == [0]
    assert driver.board.balloon.counters.inflate.bad_payloads == 3
    assert not driver.board.ram.discarded
    driver.inflate(range(4000, 4096))
    driver.deflate(range(4000, 4096))
    assert driver.board.ram.discarded_pages == PageRuns([(4000, 96)])
    assert driver.board.balloon.counters.deflate.pages == 96


@given(st.binary(max_size=100), st.sampled_from([HYBRID, RANGES]))
def test_any_bytes_decode_to_pages_or_raise_bad_payload(data: bytes, dialect: Dialect) -> None:
    try:
        runs = dialect.decode(data)
    except BadPayload:
        return
    assert all(start + count <= 1 << 52 for start, count in runs)


# The count of 4096 that spills into the page frame number.


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 1 << 20),
    st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), max_size=6),
    st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), max_size=6),
)
def test_a_range_of_4096_pages_of_the_posted_encoder_is_always_refused(
    start: int, before: list[tuple[int, int]], after: list[tuple[int, int]]
) -> None:
    """RAM is all that can be named, so that no hole refuses a page."""
    assume(not any(count == 4096 for _, count in [*before, *after]))
    (words,) = range_messages(pages_of(start, [*before, (1, 4096), *after]))
    with pytest.raises(BadPayload, match="long count" if after else "truncated record"):
        RANGES.decode(payload(words))


def test_4096_pages_in_the_long_form_are_accepted() -> None:
    assert range_records(range(7, 4103)) == [7 << 12, 4096]
    assert RANGES.decode(payload([7 << 12, 4096])) == PageRuns([(7, 4096)])


# Messages of one dialect, read in another.


@settings(deadline=None, max_examples=60)
@given(spans, st.integers(1, 3 * GIB // 4096))
def test_no_posted_hybrid_or_range_request_is_a_bitmap_request(
    drawn: list[tuple[int, int]], start: int
) -> None:
    pfns = pages_of(start, drawn)
    for words in (*hybrid_messages(pfns), *range_messages(pfns)):
        with pytest.raises(BadPayload):
            BITMAP.decode(payload(words))


def test_an_array_that_begins_with_page_0_can_be_a_hybrid_request() -> None:
    """So a feature bit must tell these dialects from the standard one."""
    array = pfn_array([0, 8, 500, 12 << 20])
    assert HYBRID.decode(array) == PageRuns([(500, 1)])
    assert STANDARD.decode(array).pages == 4
    array = pfn_array([0, 8, 3 << 12 | 7, 1])
    assert RANGES.decode(array) == PageRuns([((1 << 20) + 3, 7)])


def test_the_header_has_the_layout_of_the_wire_format() -> None:
    fields = records.read_header(bytes([1, 2, 3, 4, 5, 6, 7, 8]))
    assert fields == (1, 2, 0x0403, 0x0807_0605)
