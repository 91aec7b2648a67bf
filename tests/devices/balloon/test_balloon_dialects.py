# SPDX-License-Identifier: Apache-2.0
"""Balloon dialects as pure functions: request bytes in, pages or BadPayload out.

`test_balloon_records` has those of the hybrid and ranges dialects.
"""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.balloon import bitmap, dialects, features
from devices.balloon.dialects import BITMAP, HYBRID, RANGES, STANDARD, Dialect, Role
from devices.errors import BadPayload
from devices.testing.balloon.requests import bitmap_request, pfn_array
from pyvmm_native.runs import PageRuns

ALL = (STANDARD, BITMAP, HYBRID, RANGES)


def joined(*args: object, **kwargs: int) -> bytes:
    return b"".join(bitmap_request(*args, **kwargs))  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=300, unique=True))
def test_a_pfn_array_decodes_to_the_pages_sent(pfns: list[int]) -> None:
    runs = STANDARD.decode(pfn_array(pfns))
    assert runs == PageRuns((pfn, 1) for pfn in pfns)


@given(st.sets(st.integers(0, 5000), min_size=1), st.integers(0, 2**40))
def test_a_bitmap_decodes_to_the_pages_sent(offsets: set[int], base: int) -> None:
    pfns = {base + offset for offset in offsets}
    assert BITMAP.decode(joined(pfns)) == PageRuns((pfn, 1) for pfn in pfns)


@given(st.binary(max_size=200), st.sampled_from([STANDARD, BITMAP]))
def test_any_bytes_decode_to_pages_or_raise_bad_payload(payload: bytes, dialect: Dialect) -> None:
    try:
        runs = dialect.decode(payload)
    except BadPayload:
        return
    assert runs.pages <= 8 * len(payload) << 18


@given(
    st.integers(0, 2**16 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=64),
)
def test_any_header_decodes_to_pages_or_raises_bad_payload(
    page_shift: int, start_pfn: int, bmap_len: int, bits: bytes
) -> None:
    header = struct.pack("<HHHHQQQ", 0, page_shift, 0, 0, 0, start_pfn & ~63, bmap_len & 0x78)
    try:
        runs = BITMAP.decode(header + bits)
    except BadPayload:
        return
    assert all(start + count <= 1 << 52 for start, count in runs)


def test_the_header_has_the_layout_of_the_wire_format() -> None:
    assert bitmap.HEADER.size == 32
    assert BITMAP.max_request_bytes == 32 + 32 * 32 * 1024


@pytest.mark.parametrize("payload", [b"", b"\0", bytes(3), bytes(5), bytes(4097)])
def test_standard_refuses_payloads_that_are_no_pfn_array(payload: bytes) -> None:
    with pytest.raises(BadPayload):
        STANDARD.decode(payload)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"cmd": 1}, "command"),
        ({"cmd": 0xFFFF}, "command"),
        ({"flag": 1}, "flag"),
        ({"page_shift": 0}, "page_shift"),
        ({"page_shift": 11}, "page_shift"),
        ({"page_shift": 31}, "page_shift"),
        ({"page_shift": 0xFFFF}, "page_shift"),
        ({"start_pfn": 1}, "multiple of 64"),
        ({"start_pfn": 4}, "multiple of 64"),
        ({"bmap_len": 0}, "bmap_len"),
        ({"bmap_len": 7}, "bmap_len"),
        ({"bmap_len": 16}, "supplied"),
        ({"bmap_len": 2**64 - 8}, "supplied"),
        ({"supplied_bytes": 0}, "supplied"),
        ({"supplied_bytes": 7}, "supplied"),
    ],
)
def test_bitmap_refuses_malformed_requests(change: dict[str, int], why: str) -> None:
    with pytest.raises(BadPayload, match=why):
        BITMAP.decode(joined([5], **change))


@pytest.mark.parametrize("start_pfn", [2**64 - 64, 2**52])
def test_bitmap_refuses_addresses_beyond_64_bits(start_pfn: int) -> None:
    request = struct.pack("<HHHHQQQ", 0, 12, 0, 0, 0, start_pfn, 8) + bytes(8)
    with pytest.raises(BadPayload, match="beyond"):
        BITMAP.decode(request)


def test_bitmap_refuses_addresses_that_page_shift_overflows() -> None:
    request = struct.pack("<HHHHQQQ", 0, 30, 0, 0, 0, 1 << 34, 8) + bytes(8)
    with pytest.raises(BadPayload, match="beyond"):
        BITMAP.decode(request)


@pytest.mark.parametrize("payload", [b"", bytes(31)])
def test_bitmap_refuses_a_short_header(payload: bytes) -> None:
    with pytest.raises(BadPayload, match="too short"):
        BITMAP.decode(payload)


def test_bitmap_ignores_fields_that_do_not_concern_pages() -> None:
    request = joined([3, 70], reserved=0xFFFF, req_id=2**64 - 1, supplied_bytes=32768)
    assert list(BITMAP.decode(request)) == [(3, 1), (70, 1)]


def test_bitmap_ignores_bits_beyond_bmap_len() -> None:
    request = bytearray(joined([3], supplied_bytes=64))
    request[32 + 8 :] = b"\xff" * 56
    assert list(BITMAP.decode(bytes(request))) == [(3, 1)]


def test_bitmap_scales_larger_pages() -> None:
    assert list(BITMAP.decode(joined([1, 64], page_shift=16, start_pfn=0))) == [
        (16, 16),
        (64 * 16, 16),
    ]


def test_bitmap_takes_a_gigabyte_in_one_buffer() -> None:
    header = struct.pack("<HHHHQQQ", 0, 12, 0, 0, 0, 1 << 18, 32768)
    assert list(BITMAP.decode(header + b"\xff" * 32768)) == [(1 << 18, 1 << 18)]


# Queue numbers (5.5.2).

FURTHER = [
    (dialect, bits)
    for dialect in ALL
    for bits in range(1 << 6)
    if not bits & ~dialect.features.known
]


@pytest.mark.conformance("5.5.2-1")
@pytest.mark.parametrize(
    ("bits", "without_gaps", "listed"),
    [
        (0, [], []),
        (features.STATS_VQ, [2], [2]),
        (features.REPORTING, [2], [4]),
        (features.FREE_PAGE_HINT | features.REPORTING, [2, 3], [3, 4]),
        (features.STATS_VQ | features.FREE_PAGE_HINT | features.REPORTING, [2, 3, 4], [2, 3, 4]),
        (features.STATS_VQ | features.REPORTING, [2, 3], [2, 4]),
    ],
)
def test_both_numberings_of_the_queues_are_recognised(
    bits: int, without_gaps: list[int], listed: list[int]
) -> None:
    names = {features.STATS_VQ: Role.STATS, features.FREE_PAGE_HINT: Role.FREE_PAGE_HINT}
    names[features.REPORTING] = Role.REPORTING
    further = [role for bit, role in names.items() if bits & bit]
    for numbers in (without_gaps, listed):
        expected = {0: Role.INFLATE, 1: Role.DEFLATE, **dict(zip(numbers, further, strict=True))}
        assert STANDARD.roles(bits, [0, 1, *numbers]) == expected
    assert STANDARD.roles(bits) == STANDARD.roles(bits, [0, 1, *without_gaps])
    assert STANDARD.queue_count(bits) == max([1, *listed]) + 1


@pytest.mark.conformance("5.5.2-3")
@pytest.mark.parametrize(("dialect", "bits"), FURTHER)
def test_the_enabled_queues_determine_the_numbering(dialect: Dialect, bits: int) -> None:
    """Each numbering is recognised by its own queues with any features."""
    compact = dialect.roles(bits)
    assert list(compact) == list(range(len(compact)))
    assert dialect.roles(bits, compact.keys()) == compact
    listed = dialect.roles(bits, [n for n in range(8) if n in dialect.roles(bits, [n])][-1:])
    assert list(listed.values()) == list(compact.values())
    assert dialect.roles(bits, listed.keys()) == listed
    assert max(listed) < dialect.queue_count(bits)


def test_unknown_numbering_is_read_without_gaps() -> None:
    bits = features.STATS_VQ | features.REPORTING
    assert STANDARD.roles(bits, range(8)) == STANDARD.roles(bits)


def test_dialects_are_chosen_by_name() -> None:
    assert dialects.by_name("standard") is STANDARD
    assert dialects.by_name("bitmap") is BITMAP
    assert dialects.by_name("hybrid") is HYBRID
    assert dialects.by_name("ranges") is RANGES
    assert dialects.NAMES == ("standard", "bitmap", "hybrid", "ranges")
    with pytest.raises(KeyError):
        dialects.by_name("guess")


# No request of one dialect is one of the other. A PFN array names each page once; the only way to
# read one as a header is with the high halves of start_pfn and bmap_len 0, which are two PFNs.


def small_header(draw: st.DrawFn, kinds: list[st.SearchStrategy[int]]) -> list[int]:
    """Distinct PFNs, each close to the value that a header needs at its place."""
    pfns: list[int] = []
    for kind in kinds:
        pfns.append(draw(kind.filter(lambda pfn: pfn not in pfns)))
    return pfns


@st.composite
def header_like_arrays(draw: st.DrawFn) -> list[int]:
    anything = st.integers(0, 2**32 - 1)
    high = st.integers(0, 3) | anything
    pfns = small_header(
        draw,
        [
            st.integers(0, 31).map(lambda shift: shift << 16) | anything,
            st.integers(0, 2**16 - 1).map(lambda reserved: reserved << 16) | anything,
            anything,
            anything,
            st.integers(0, 2**26 - 1).map(lambda start: start * 64) | anything,
            high,
            st.integers(0, 130).map(lambda length: length * 8) | anything,
            high,
        ],
    )
    more = draw(st.lists(anything, max_size=248, unique=True))
    return pfns + [pfn for pfn in more if pfn not in pfns]


@settings(max_examples=500)
@given(header_like_arrays())
def test_no_pfn_array_of_a_standard_driver_is_a_bitmap_request(pfns: list[int]) -> None:
    """RAM is 16 TiB, all that a PFN array can name, so that no hole refuses a page."""
    ram = PageRuns([(0, 1 << 32)])
    try:
        runs = BITMAP.decode(pfn_array(pfns))
    except BadPayload:
        return
    assert runs.pages == 0 or runs.subtract(ram), "nothing, or refused for its strays"


def test_the_array_that_would_be_a_bitmap_request_names_page_0_twice() -> None:
    """The array closest to a header; the test above would find it if it were allowed."""
    array = [12 << 16, 1 << 16, 1, 2, 64, 0, 8, 0, 0xFFFF_FFFF, 7]
    assert BITMAP.decode(pfn_array(array)).pages == 35
    with pytest.raises(BadPayload, match="names a page twice"):
        STANDARD.decode(pfn_array(array))


@given(st.sets(st.integers(0, 2**22), min_size=1, max_size=300), st.integers(0, 2**32 - 1))
def test_no_bitmap_request_is_a_pfn_array(pfns: set[int], low_request_id: int) -> None:
    """Ignored fields may hold any value."""
    base = min(pfns) // 64 * 64
    request = joined([pfn for pfn in pfns if pfn < base + 262_144], req_id=low_request_id)
    with pytest.raises(BadPayload, match="names a page twice"):
        STANDARD.decode(request)


def test_colliding_bits_belong_to_one_dialect_only() -> None:
    assert STANDARD.features.default & features.FREE_PAGE_HINT == 0
    assert BITMAP.features.required == features.PAGE_BITMAP
    assert BITMAP.features.fixed == features.PAGE_BITMAP | features.STATS_VQ
    assert HYBRID.features.required == features.PAGE_BITMAP | features.HYBRID_RECORDS
    assert RANGES.features.required == features.PAGE_RANGE | features.RANGE_RECORDS
    own = [features.HYBRID_RECORDS, features.RANGE_RECORDS]
    assert [bit.bit_length() - 1 for bit in own] == [50, 51], "left to device types (2.2)"


@pytest.mark.parametrize("dialect", ALL, ids=lambda each: each.name)
def test_feature_sets_are_consistent(dialect: Dialect) -> None:
    known = dialect.features
    assert known.required & ~known.fixed == known.fixed & ~known.default == 0
    assert known.default & known.optional == 0
    assert sum(known.options.values()) == known.known
