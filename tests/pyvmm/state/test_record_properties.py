# SPDX-License-Identifier: Apache-2.0
"""Records survive any way of cutting the stream, and no damage to it goes unnoticed."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.state.records import HEADER_BYTES, Kind, Record, RecordError, RecordReader
from pyvmm_native.pages import crc32c

KINDS = {"vcpu": Kind(3, 300, max_instances=8), "uart": Kind(1, 40), "x" * 32: Kind(2**32 - 1, 0)}


@st.composite
def records(draw: st.DrawFn) -> Record:
    name = draw(st.sampled_from(sorted(KINDS)))
    kind = KINDS[name]
    return Record(
        name,
        draw(st.integers(1, kind.version)),
        draw(st.binary(max_size=kind.max_bytes)),
        draw(st.integers(0, kind.max_instances - 1)),
    )


def read(data: bytes, cuts: list[int] | None = None) -> list[Record]:
    """Every record of `data`, fed in pieces; RecordError, also for an end in the middle of one."""
    reader = RecordReader(KINDS)
    found: list[Record] = []
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts or [])})
    for begin, end in pairwise(places):
        reader.feed(data[begin:end])
        while record := reader.next():
            found.append(record)
    if not reader.between_records:
        raise RecordError("it ends too early")
    return found


@given(st.lists(records(), max_size=5), st.lists(st.integers(0, 3000), max_size=8))
def test_what_is_written_is_read(written: list[Record], cuts: list[int]) -> None:
    assert read(b"".join(record.encode() for record in written), cuts) == written


@given(st.lists(records(), min_size=1, max_size=3), st.data())
def test_a_changed_byte_is_noticed(written: list[Record], data: st.DataObject) -> None:
    stream = bytearray(b"".join(record.encode() for record in written))
    place = data.draw(st.integers(0, len(stream) - 1))
    stream[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RecordError):
        read(bytes(stream))


@given(records(), st.data())
def test_an_early_end_is_noticed(record: Record, data: st.DataObject) -> None:
    stream = record.encode()
    with pytest.raises(RecordError, match="too early"):
        read(stream[: data.draw(st.integers(1, len(stream) - 1))])


@given(st.binary(max_size=200))
def test_any_bytes_at_all(data: bytes) -> None:
    try:
        assert read(data) == []
    except RecordError:
        assert data


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (Record("vgpu", 1, b""), "'vgpu' are not known"),
        (Record("vcpu", 4, b""), "'vcpu' has version 4; this pyvmm reads 1 to 3"),
        (Record("vcpu", 0, b""), "'vcpu' has version 0"),
        (Record("vcpu", 1, b"", 8), "'vcpu' number 8"),
        (Record("uart", 1, bytes(41)), "'uart' of 41 bytes is too long"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(record: Record, what: str) -> None:
    with pytest.raises(RecordError, match=what):
        read(record.encode())


def test_a_refused_record_is_refused_before_its_payload_came() -> None:
    reader = RecordReader(KINDS)
    reader.feed(Record("uart", 1, bytes(41)).encode()[:HEADER_BYTES])
    with pytest.raises(RecordError, match="too long"):
        reader.next()


@pytest.mark.parametrize("kind", ["", "é", "y" * 33])
def test_names_that_do_not_fit(kind: str) -> None:
    with pytest.raises(ValueError, match=r"no record|ascii"):
        Record(kind, 1, b"").encode()


@given(st.binary(max_size=100), st.integers(0, 100))
def test_checksums(data: bytes, cut: int) -> None:
    """The instruction, the table, and pieces one after the other agree."""
    whole = crc32c(data)
    assert whole == crc32c(data, by_table=True) == crc32c(data[cut:], crc32c(data[:cut]))


def test_the_checksum_is_the_one_of_rfc_3720() -> None:
    """Its appendix B.4, and the usual check value."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
