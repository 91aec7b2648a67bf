# SPDX-License-Identifier: Apache-2.0
"""Migration streams: any division of valid ones is read, everything else is refused."""

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
from pyvmm_native.runs import PageRuns
from tests.fuzz import migration_stream
from tests.pyvmm.migration.migration_guest import KINDS, PARTS, config_of

HELLO = Hello(config_of(64))
PAGE = bytes(range(256)) * 16
BLOCK = Pages(512, b"\x03" + bytes(63), PAGE + PAGE)
PAGES = Pages(512, b"\x01" + bytes(63))
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


def encoded(sent: Sequence[messages.FromSource | messages.FromDestination]) -> bytes:
    return b"".join(message.record().encode() for message in sent)


def read(
    reader: SourceReader | DestinationReader, data: bytes, cuts: Sequence[int] = ()
) -> list[Any]:
    found = []
    ends = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for begin, end in pairwise(ends):
        reader.feed(data[begin:end])
        while (message := reader.next()) is not None:
            found.append(message)
    return found


@given(st.lists(st.integers(0, 1 << 20), max_size=8))
def test_messages_are_read_as_they_were_sent(cuts: list[int]) -> None:
    assert read(SourceReader(KINDS), encoded(FROM_SOURCE), cuts) == FROM_SOURCE
    assert read(DestinationReader(), encoded(FROM_DESTINATION), cuts) == FROM_DESTINATION


def test_a_reader_reads_ahead_only_when_no_page_can_follow() -> None:
    """One receive takes everything after the first part of the state."""
    reader, data, found, states = SourceReader(KINDS), encoded(FROM_SOURCE), list[object](), 0
    reads_ahead = 0
    while data:
        wanted = reader.wanted_bytes
        reads_ahead += bool(states)
        reader.feed(data[:wanted])
        data = data[wanted:]
        while (message := reader.next()) is not None:
            found.append(message)
            states += isinstance(message, DeviceState)
    assert reads_ahead == 1
    assert found == FROM_SOURCE


@given(st.lists(st.sampled_from([Zeros(PageRuns([(0, 3), (9, 1)])), PAGES])))
def test_no_receive_takes_contents_of_pages(sent: list[messages.FromSource]) -> None:
    """Those follow a message of their own, which takes one receive after another such message."""
    data = b"".join(
        message.record().encode() + bytes(4096 if message is PAGES else 0)
        for message in [HELLO, *sent, RoundEnd(1)]
    )
    reader, receives, previous = SourceReader(KINDS), 0, None
    while data:
        wanted = reader.wanted_bytes
        reader.feed(data[:wanted])
        data, receives = data[wanted:], receives + 1
        while (message := reader.next()) is not None:
            if message == PAGES:
                assert reader.between_messages
                assert previous != PAGES or receives == 1
                assert data[:4096] == bytes(4096)
                data = data[4096:]
                receives = 0
            previous = message


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ([BLOCK], "Pages arrived out of order"),
        ([Commit()], "Commit arrived out of order"),
        ([HELLO, HELLO], "Hello arrived out of order"),
        ([READY], "Ready arrived out of order"),
        ([HELLO, Commit()], "Commit arrived out of order"),
        ([HELLO, CPU, BLOCK], "Pages arrived out of order"),
        ([HELLO, CPU, RoundEnd(1)], "RoundEnd arrived out of order"),
        ([HELLO, CPU, Commit()], "Commit arrived out of order"),
        ([HELLO, CPU, READY, READY], "Ready arrived out of order"),
        ([HELLO, CPU, READY, Commit(), Commit()], "Commit arrived out of order"),
        ([HELLO, RoundEnd(2)], "round 2 arrived instead of 1"),
        ([HELLO, RoundEnd(1), RoundEnd(1)], "round 1 arrived instead of 2"),
        ([HELLO, CPU, CPU], "part 'cpu' number 0 arrived twice"),
        ([HELLO, DeviceState(Record("vgpu", 1, b""))], "'vgpu' are not known"),
        (
            [HELLO, DeviceState(Record("cpu", 2, b""))],
            "'cpu' has version 2; this pyvmm reads version 1",
        ),
        ([HELLO, Pages(64 << 8, b"\1" + bytes(63), PAGE)], "outside the guest's RAM"),
        ([HELLO, Pages(1 << 39, b"\1" + bytes(63), PAGE)], "outside the guest's RAM"),
        ([HELLO, Pages(1 << 40, b"\1" + bytes(63), PAGE)], "no block of pages begins"),
        ([HELLO, Pages(8, b"\1" + bytes(63), PAGE)], "no block of pages begins"),
        ([HELLO, Pages(512, b"\1" + bytes(63), PAGE[1:])], "4167 bytes for 1 pages"),
        ([HELLO, Pages(512, bytes(64), b"")], "names no page"),
        ([HELLO, Zeros(PageRuns([(64 << 8, 1)]))], "outside the guest's RAM"),
        ([HELLO, Zeros(PageRuns())], "'zeros' has 0 bytes"),
    ],
)
def test_invalid_messages_of_a_source_are_refused(
    sent: list[messages.FromSource], message: str
) -> None:
    with pytest.raises(MigrationError, match=message):
        read(SourceReader(KINDS), encoded(sent))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (Record("zeros", 1, bytes(16)), "zeros"),
        (Record("zeros", 1, bytes(15)), "'zeros' has 15 bytes"),
        (Record("zeros", 1, struct.pack("<QQ", 1, 1 << 63)), "zeros"),
        (Record("round-end", 1, bytes(7)), "'round-end' has 7 bytes"),
        (Record("pages", 1, bytes(71)), "'pages' has 71 bytes"),
        (Record("ready", 1, struct.pack("<QQQ", 0, 0, 2)), "has 2 instead of 0 or 1"),
        (Record("commit", 1, b"x"), "'commit' of 1 bytes is too long"),
        (Record("migration", 2, b"{}"), "migration: kernel is missing"),
        (Record("migration", 2, b"["), "cannot be read"),
    ],
)
def test_malformed_payloads_of_a_source_are_refused(record: Record, message: str) -> None:
    data = record.encode()
    if record.kind != "migration":
        data = encoded([HELLO]) + data
    with pytest.raises(MigrationError, match=message):
        read(SourceReader(KINDS), data)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ([RoundAck(1)], "out of order"),
        ([StateRestored()], "out of order"),
        ([Welcome(), Running()], "out of order"),
        ([Welcome(), RoundAck(2)], "round 2 arrived instead of 1"),
        ([Welcome(), StateRestored(), RoundAck(1)], "out of order"),
        ([Failed("it is full"), Welcome()], "out of order"),
    ],
)
def test_invalid_messages_of_a_destination_are_refused(
    sent: list[messages.FromDestination], message: str
) -> None:
    with pytest.raises(MigrationError, match=message):
        read(DestinationReader(), encoded(sent))


def test_another_protocol_is_named_as_such() -> None:
    for reader in (SourceReader(KINDS), DestinationReader()):
        with pytest.raises(MigrationError, match="does not send a migration"):
            read(reader, b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: something\r\n\r\n")


def test_a_reason_is_printable_and_bounded() -> None:
    [failed] = read(DestinationReader(), encoded([Failed("no\x1b[2Jroom\n" + "ü" * 2000)]))
    assert failed.reason.startswith("no?[2Jroom?üüü")
    assert len(failed.reason) <= messages.MAX_REASON_BYTES


def test_a_part_cannot_have_the_name_of_a_message() -> None:
    with pytest.raises(ValueError, match="has the name of a message"):
        SourceReader({"commit": KINDS["disk"]})


@settings(max_examples=500)
@given(st.binary(max_size=600))
def test_arbitrary_bytes_raise_migration_errors_only(data: bytes) -> None:
    migration_stream.run(data)
