# SPDX-License-Identifier: Apache-2.0
"""The descriptions of buffers: right for a driver's, and bounded for a hostile guest's."""

from __future__ import annotations

import struct
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.balloon import bitmap
from devices.balloon.features import FREE_PAGE_HINT, MISC_VQ, REPORTING, STATS_VQ
from devices.console.control import HEADER, WINDOW_SIZE, Event
from devices.virtio.description import (
    MAX_FIELDS,
    MAX_VALUE_CHARACTERS,
    BufferBytes,
    Described,
)
from pyvmm.machine.catalogue import CATALOGUE, describer

DIALECTS = ("standard", "bitmap", "hybrid", "ranges")
QUEUES = ("inflate", "deflate", "queue 2", "queue 3", "queue 4", "request", "control receive")


def described(
    device: str,
    queue: str,
    readable: bytes = b"",
    writable: bytes = b"",
    features: int = 0,
    dialect: str = "standard",
) -> list[Described]:
    describe = describer(device)
    assert describe is not None
    properties = MappingProxyType({"dialect": dialect} if device == "balloon" else {})
    return describe(BufferBytes(queue, readable, writable, features, properties))


def values(fields: list[Described]) -> dict[str, str]:
    return {field.name: field.value for field in fields}


@pytest.mark.parametrize("device", [entry.name for entry in CATALOGUE])
@given(
    queue=st.sampled_from([*QUEUES, "port 1 transmit", ""]) | st.text(max_size=12),
    readable=st.binary(max_size=5000),
    writable=st.binary(max_size=64),
    features=st.integers(0, 2**64 - 1),
    dialect=st.sampled_from(DIALECTS) | st.text(max_size=8),
)
def test_any_bytes_have_a_bounded_description_within_them(
    device: str, queue: str, readable: bytes, writable: bytes, features: int, dialect: str
) -> None:
    fields = described(device, queue, readable, writable, features, dialect)
    assert len(fields) <= MAX_FIELDS
    sizes = {"readable": len(readable), "writable": len(writable)}
    for field in fields:
        assert field.offset >= 0
        assert field.offset + field.length <= sizes[field.part]
        assert len(field.value) <= MAX_VALUE_CHARACTERS
        assert field.name
        assert field.clause


def test_a_standard_inflate_names_its_pages() -> None:
    fields = described("balloon", "inflate", struct.pack("<3I", 0x10, 0x11, 0x300))
    assert [(field.offset, field.length, field.value) for field in fields] == [
        (0, 4, "page frame 0x10, at 0x10000"),
        (4, 4, "page frame 0x11, at 0x11000"),
        (8, 4, "page frame 0x300, at 0x300000"),
    ]
    many = described("balloon", "inflate", bytes(1024))
    assert many[-1].value == "208 further pages"


def test_a_bitmap_request_shows_its_header_and_counts_its_pages() -> None:
    request = bitmap.HEADER.pack(0, 12, 0, 0, 0, 0x40, 8) + (0b1011).to_bytes(8, "little")
    found = values(described("balloon", "inflate", request, dialect="bitmap"))
    assert found["start_pfn"] == "0x40"
    assert found["bmap_len"] == "8 bytes"
    assert found["bitmap"] == "3 of 64 pages from 0x40 on"


@pytest.mark.parametrize("dialect", ["hybrid", "ranges"])
def test_a_request_of_records_shows_its_header(dialect: str) -> None:
    found = described("balloon", "inflate", struct.pack("<Q", 8 << 32), dialect=dialect)
    assert values(found) == {"cmd": "0", "flag": "0", "id": "0", "data_len": "8 bytes"}


def test_further_queues_of_the_balloon_are_described_by_role() -> None:
    stats = struct.pack("<HQHQ", 4, 4096, 99, 7)
    found = values(described("balloon", "queue 2", stats, features=STATS_VQ))
    assert found == {"stat-free-memory": "4096 bytes", "tag 99": "7"}
    hint = described("balloon", "queue 2", bytes(4), features=FREE_PAGE_HINT)
    assert values(hint) == {"command id": "STOP"}
    assert hint[0].clause == "VIRTIO 1.2, 5.5.6.5"
    (report,) = described("balloon", "queue 2", b"", bytes(4096), features=REPORTING)
    assert (report.name, report.length) == ("reported memory", 4096)
    request = struct.pack("<H6xQ", 0, 5)
    features = STATS_VQ | MISC_VQ
    found = values(described("balloon", "queue 3", b"", request, features, "bitmap"))
    assert found == {"cmd": "GET_UNUSED_PAGES", "param": "request 5"}
    assert described("balloon", "queue 9", bytes(8)) == []


def test_console_messages_and_data_are_described() -> None:
    message = HEADER.pack(1, Event.PORT_OPEN, 1)
    found = values(described("console", "control transmit", message))
    assert found == {"id": "port 1", "event": "PORT_OPEN", "value": "1"}
    resize = HEADER.pack(0, Event.RESIZE, 0) + WINDOW_SIZE.pack(80, 25)
    found = values(described("console", "control receive", b"", resize))
    assert found["window size"] == "80 columns, 25 rows"
    name = HEADER.pack(1, Event.PORT_NAME, 1) + b"agent\0"
    assert values(described("console", "control receive", b"", name))["name"] == "'agent'"
    (text,) = described("console", "port 0 transmit", b"\x1b[31m<b>")
    assert text.value == "'\\x1b[31m<b>'"


def test_rng_buffers_are_described() -> None:
    (field,) = described("rng", "request", b"", bytes(64))
    assert (field.part, field.length, field.clause) == ("writable", 64, "VIRTIO 1.2, 5.4.6")


def test_a_device_without_a_description_has_none() -> None:
    assert describer("unknown") is None
    assert describer("rng", [CATALOGUE[1]._replace(describe=None)]) is None
