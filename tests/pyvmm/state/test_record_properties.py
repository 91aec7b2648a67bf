# SPDX-License-Identifier: Apache-2.0
"""Records: any division of the stream is read, all damage is detected, and versions evolve."""

from __future__ import annotations

import random
import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.state import StateError, encode
from pyvmm.state.records import (
    HEADER_BYTES,
    Kind,
    Record,
    RecordError,
    RecordReader,
    fields_upgrade,
    record_fields,
)
from pyvmm_native.checksum import CRC32C_IMPLEMENTATIONS, crc32c, crc32c_by

KINDS = {"vcpu": Kind(3, 300, max_instances=8), "uart": Kind(1, 40), "x" * 32: Kind(2**16 - 1, 0)}


@st.composite
def records(draw: st.DrawFn) -> Record:
    name = draw(st.sampled_from(sorted(KINDS)))
    kind = KINDS[name]
    return Record(
        name,
        kind.version,
        draw(st.binary(max_size=kind.max_bytes)),
        draw(st.integers(0, kind.max_instances - 1)),
    )


def read(data: bytes, cuts: list[int] | None = None) -> list[Record]:
    """Return the records of `data`, fed in pieces; RecordError if it ends within a record."""
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
def test_records_are_read_as_they_were_written(written: list[Record], cuts: list[int]) -> None:
    assert read(b"".join(record.encode() for record in written), cuts) == written


@given(st.lists(records(), min_size=1, max_size=3), st.data())
def test_a_changed_byte_is_detected(written: list[Record], data: st.DataObject) -> None:
    stream = bytearray(b"".join(record.encode() for record in written))
    place = data.draw(st.integers(0, len(stream) - 1))
    stream[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RecordError):
        read(bytes(stream))


@given(records(), st.data())
def test_a_truncated_stream_is_detected(record: Record, data: st.DataObject) -> None:
    stream = record.encode()
    with pytest.raises(RecordError, match="too early"):
        read(stream[: data.draw(st.integers(1, len(stream) - 1))])


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    try:
        assert read(data) == []
    except RecordError:
        assert data


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (Record("vgpu", 1, b""), "'vgpu' are not known"),
        (Record("vcpu", 4, b""), "'vcpu' has version 4; this pyvmm reads version 3"),
        (Record("vcpu", 0, b""), "'vcpu' has version 0"),
        (Record("vcpu", 3, b"", 8), "'vcpu' has no number 8"),
        (Record("vcpu", 2, b""), "'vcpu' has version 2; this pyvmm reads version 3"),
        (Record("vcpu", 4, b"", optional=True), "'vcpu' has version 4"),
        (Record("vcpu", 5, b"", compatible=1), "'vcpu' has version 5"),
        (Record("uart", 1, bytes(41)), "'uart' of 41 bytes is too long"),
    ],
)
def test_unknown_records_are_refused_by_name(record: Record, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        read(record.encode())


def test_a_record_is_refused_before_its_payload_arrives() -> None:
    reader = RecordReader(KINDS)
    reader.feed(Record("uart", 1, bytes(41)).encode()[:HEADER_BYTES])
    with pytest.raises(RecordError, match="too long"):
        reader.next()


@pytest.mark.parametrize("kind", ["", "é", "y" * 33])
def test_kind_names_that_do_not_fit_the_header_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r"cannot hold|ascii"):
        Record(kind, 1, b"").encode()


@given(
    st.binary(max_size=100) | st.integers(500, 20_000).map(random.Random(1).randbytes),
    st.integers(0, 5000),
    st.integers(0, 0xFFFFFFFF),
)
def test_all_ways_to_compute_a_checksum_agree(data: bytes, cut: int, crc: int) -> None:
    """By each implementation that the processor has, and piece by piece."""
    whole = crc32c(data, crc)
    assert whole == crc32c(data[cut:], crc32c(data[:cut], crc))
    assert {crc32c_by(name, data, crc) for name in CRC32C_IMPLEMENTATIONS} == {whole}


def test_the_checksum_is_that_of_rfc_3720() -> None:
    """The examples of its appendix B.4, and the usual check value."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


# --- Versions (docs/reference/formats.md) ---------------------------------------------------------
def test_an_optional_record_of_an_unknown_kind_is_skipped() -> None:
    known = Record("uart", 1, b"known")
    data = Record("vgpu", 7, bytes(1000), 9, optional=True).encode()
    assert read(data + known.encode() + data) == [known]


def test_an_optional_record_is_skipped_only_if_it_is_intact() -> None:
    data = bytearray(Record("vgpu", 1, b"payload", optional=True).encode())
    data[-1] ^= 1
    with pytest.raises(RecordError, match="'vgpu' is damaged"):
        read(bytes(data))


def test_a_newer_version_is_read_if_it_is_compatible() -> None:
    payload = encode({"speed": 1, "added": 2})
    [record] = read(Record("uart", 3, payload, compatible=2).encode())
    fields = record_fields(record, KINDS["uart"])
    assert fields.number("speed") == 1
    fields.done()


def test_unknown_fields_of_the_known_version_are_refused() -> None:
    fields = record_fields(Record("uart", 1, encode({"added": 2})), KINDS["uart"])
    with pytest.raises(StateError, match="added is not known here"):
        fields.done()


def test_an_older_version_is_upgraded_step_by_step() -> None:
    first = fields_upgrade(lambda old: {"baud": old["speed"] * 100})
    second = fields_upgrade(lambda old: {**old, "parity": False})
    kinds = {"uart": Kind(4, 100, upgrades=(first, second))}

    def upgraded(version: int, payload: bytes) -> Record | None:
        reader = RecordReader(kinds)
        reader.feed(Record("uart", version, payload).encode())
        return reader.next()

    newest = Record("uart", 4, encode({"baud": 9600, "parity": False}))
    assert upgraded(2, encode({"speed": 96})) == newest
    assert upgraded(3, encode({"baud": 9600})) == newest
    assert upgraded(4, newest.payload) == newest
    with pytest.raises(RecordError, match="has version 1; this pyvmm reads versions 2 to 4"):
        upgraded(1, b"")
    with pytest.raises(RecordError, match="'uart' of version 2 cannot be upgraded: state: cannot"):
        upgraded(2, b"no fields")


def test_headers_from_before_flags_read_as_required_and_incompatible() -> None:
    """Instance and version were u32 then, the halves that are flags and `compatible` now zero."""
    header = struct.pack("<32sIIII", b"uart", 0, 1, 1, crc32c(b"x"))
    old = header + struct.pack("<I", crc32c(header)) + b"x"
    assert old == Record("uart", 1, b"x").encode()


@pytest.mark.parametrize(
    ("flags", "version", "compatible", "message"),
    [
        (2, 1, 0, "flags 0x2"),
        (0, 3, 3, "suit 3 earlier versions"),
        (1, 0, 1, "suit 1 earlier versions"),
    ],
)
def test_headers_that_no_version_defines_are_refused(
    flags: int, version: int, compatible: int, message: str
) -> None:
    header = struct.pack("<32sHHHHII", b"uart", 0, flags, version, compatible, 0, 0)
    with pytest.raises(RecordError, match=message):
        read(header + struct.pack("<I", crc32c(header)))
