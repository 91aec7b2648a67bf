# SPDX-License-Identifier: Apache-2.0
"""What is said in a migration is understood, however it is cut; everything else is refused."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.migration import messages
from pyvmm.migration.errors import MigrationError
from pyvmm.migration.messages import (
    Commit,
    DeviceState,
    Failed,
    Hello,
    Pages,
    Ready,
    RoundAck,
    RoundEnd,
    Running,
    StateRestored,
    Welcome,
    Zeros,
)
from pyvmm.migration.stream import DestinationReader, SourceReader
from pyvmm.state.records import Record
from pyvmm.units import MIB
from pyvmm_native.pages import bitmap
from pyvmm_native.runs import PageRuns
from tests.fuzz import migration_stream
from tests.pyvmm.migration.migration_guest import KINDS, PARTS, PlainRam, config_of

HELLO = Hello(config_of(64))
PAGE = bytes(range(256)) * 16
BLOCK = Pages(512, b"\x03" + bytes(63), PAGE + PAGE)
CPU = DeviceState(PARTS[0])
READY = Ready(2, 1, True)
FROM_SOURCE: list[messages.FromSource] = [
    HELLO,
    BLOCK,
    Zeros(PageRuns([(0, 3), (9, 1)])),
    RoundEnd(1),
    BLOCK,
    RoundEnd(2),
]
FROM_SOURCE += [*(DeviceState(part) for part in PARTS), READY, Commit()]
FROM_DESTINATION: list[messages.FromDestination] = [
    Welcome(),
    RoundAck(1),
    RoundAck(2),
    StateRestored(),
    Running(),
]


@given(st.lists(st.sets(st.integers(0, 511), min_size=1), min_size=1, max_size=3))
def test_pages_are_encoded_in_the_same_room_as_in_their_own(blocks: list[set[int]]) -> None:
    ram = PlainRam(2 * MIB)
    ram.memory.write(0, bytes(range(1, 256)) * 8192)
    buffer = messages.PagesBuffer()
    for pages in blocks:
        bits = bitmap(PageRuns((pfn, 1) for pfn in pages), 0, 512)
        data = b"".join(ram.page(pfn) for pfn in sorted(pages))
        assert buffer.encoded(ram.memory, 0, bits) == Pages(0, bits, data).record().encode()


def encoded(said: Sequence[messages.FromSource | messages.FromDestination]) -> bytes:
    return b"".join(message.record().encode() for message in said)


def read(
    reader: SourceReader | DestinationReader, data: bytes, cuts: Sequence[int] = ()
) -> list[Any]:
    found = []
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for begin, end in pairwise(places):
        reader.feed(data[begin:end])
        while (message := reader.next()) is not None:
            found.append(message)
    return found


@given(st.lists(st.integers(0, 1 << 20), max_size=8))
def test_what_is_said_is_understood(cuts: list[int]) -> None:
    assert read(SourceReader(KINDS), encoded(FROM_SOURCE), cuts) == FROM_SOURCE
    assert read(DestinationReader(), encoded(FROM_DESTINATION), cuts) == FROM_DESTINATION


def test_what_is_wanted_is_what_comes() -> None:
    """Fed as many bytes as it wants each time, a reader never needs to hold a second message."""
    reader, data, found = SourceReader(KINDS), encoded(FROM_SOURCE), []
    while data:
        wanted = reader.wanted_bytes
        reader.feed(data[:wanted])
        data = data[wanted:]
        while (message := reader.next()) is not None:
            found.append(message)
            assert reader.between_messages
    assert found == FROM_SOURCE


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ([BLOCK], "Pages came out of order"),
        ([Commit()], "Commit came out of order"),
        ([HELLO, HELLO], "Hello came out of order"),
        ([READY], "Ready came out of order"),
        ([HELLO, Commit()], "Commit came out of order"),
        ([HELLO, CPU, BLOCK], "Pages came out of order"),
        ([HELLO, CPU, RoundEnd(1)], "RoundEnd came out of order"),
        ([HELLO, CPU, Commit()], "Commit came out of order"),
        ([HELLO, CPU, READY, READY], "Ready came out of order"),
        ([HELLO, CPU, READY, Commit(), Commit()], "Commit came out of order"),
        ([HELLO, RoundEnd(2)], "round 2 came where 1 was due"),
        ([HELLO, RoundEnd(1), RoundEnd(1)], "round 1 came where 2 was due"),
        ([HELLO, CPU, CPU], "part 'cpu' number 0 came twice"),
        ([HELLO, DeviceState(Record("vgpu", 1, b""))], "'vgpu' are not known"),
        (
            [HELLO, DeviceState(Record("cpu", 2, b""))],
            "'cpu' has version 2; this pyvmm reads 1 to 1",
        ),
        ([HELLO, Pages(64 << 8, b"\1" + bytes(63), PAGE)], "that the guest does not have"),
        ([HELLO, Pages(1 << 39, b"\1" + bytes(63), PAGE)], "that the guest does not have"),
        ([HELLO, Pages(1 << 40, b"\1" + bytes(63), PAGE)], "no block of pages begins"),
        ([HELLO, Pages(8, b"\1" + bytes(63), PAGE)], "no block of pages begins"),
        ([HELLO, Pages(512, b"\1" + bytes(63), PAGE[1:])], "4167 bytes for 1 pages"),
        ([HELLO, Pages(512, bytes(64), b"")], "72 bytes for 0 pages"),
        ([HELLO, Zeros(PageRuns([(64 << 8, 1)]))], "that the guest does not have"),
        ([HELLO, Zeros(PageRuns())], "'zeros' has 0 bytes"),
    ],
)
def test_a_source_is_refused(said: list[messages.FromSource], what: str) -> None:
    with pytest.raises(MigrationError, match=what):
        read(SourceReader(KINDS), encoded(said))


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (Record("zeros", 1, bytes(16)), "zeros"),
        (Record("zeros", 1, bytes(15)), "'zeros' has 15 bytes"),
        (Record("zeros", 1, struct.pack("<QQ", 1, 1 << 63)), "zeros"),
        (Record("round", 1, bytes(7)), "'round' has 7 bytes"),
        (Record("pages", 1, bytes(71)), "'pages' has 71 bytes"),
        (Record("ready", 1, struct.pack("<QQQ", 0, 0, 2)), "says 2 where 0 or 1 was due"),
        (Record("commit", 1, b"x"), "'commit' of 1 bytes is too long"),
        (Record("migration", 1, b"{}"), "migration: kernel is missing"),
        (Record("migration", 1, b"["), "cannot be read"),
    ],
)
def test_a_message_of_a_source_is_refused(record: Record, what: str) -> None:
    data = record.encode()
    if record.kind != "migration":
        data = encoded([HELLO]) + data
    with pytest.raises(MigrationError, match=what):
        read(SourceReader(KINDS), data)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ([RoundAck(1)], "out of order"),
        ([StateRestored()], "out of order"),
        ([Welcome(), Running()], "out of order"),
        ([Welcome(), RoundAck(2)], "round 2 came where 1 was due"),
        ([Welcome(), StateRestored(), RoundAck(1)], "out of order"),
        ([Failed("it is full"), Welcome()], "out of order"),
    ],
)
def test_a_destination_is_refused(said: list[messages.FromDestination], what: str) -> None:
    with pytest.raises(MigrationError, match=what):
        read(DestinationReader(), encoded(said))


def test_who_speaks_something_else_is_told_so() -> None:
    for reader in (SourceReader(KINDS), DestinationReader()):
        with pytest.raises(MigrationError, match="speaks no migration"):
            read(reader, b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: something\r\n\r\n")


def test_a_reason_is_fit_to_be_shown() -> None:
    [failed] = read(DestinationReader(), encoded([Failed("no\x1b[2Jroom\n" + "ü" * 2000)]))
    assert failed.reason.startswith("no?[2Jroom?üüü")
    assert len(failed.reason) <= messages.MAX_REASON_BYTES


def test_parts_and_messages_have_names_of_their_own() -> None:
    with pytest.raises(ValueError, match="has the name of a message"):
        SourceReader({"commit": KINDS["disk"]})


@settings(max_examples=500)
@given(st.binary(max_size=600))
def test_any_bytes_at_all(data: bytes) -> None:
    migration_stream.run(data)
