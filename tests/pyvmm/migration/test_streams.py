# SPDX-License-Identifier: Apache-2.0
"""A migration over several streams: all memory arrives, and a side that stalls ends it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.errors import UserError
from pyvmm.migration import messages
from pyvmm.migration.destination import DestinationMigration
from pyvmm.migration.errors import Cancelled, MigrationError
from pyvmm.migration.progress import MigrationProgress, Settings
from pyvmm.migration.source import SourceMigration
from pyvmm.migration.stream import SourceReader
from pyvmm.migration.timeouts import TIMEOUTS, Timeouts
from pyvmm.units import MIB
from tests.pyvmm.migration.migration_guest import (
    CONFIG,
    PAGE,
    PAGES,
    PARTS,
    FakeTarget,
    PageWrite,
    Wire,
    WritingGuest,
    check_memory,
    guests,
    join,
    migrate,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

PATTERN = [PageWrite(pfn, 1 + pfn * 7 % 255) for pfn in range(0, PAGES, 3)]
"""A third of RAM, in all of its blocks."""


pytestmark = pytest.mark.usefixtures("no_minimum_round_time")


@pytest.mark.parametrize("streams", [1, 2, 4, messages.MAX_STREAMS])
@pytest.mark.parametrize("checksum", ["crc32c", "none"])
def test_a_pattern_arrives_whole_over_any_number_of_streams(streams: int, checksum: str) -> None:
    guest, target = WritingGuest(CONFIG, PATTERN), FakeTarget()
    result = migrate(guest, target, Settings(streams=streams, checksum=checksum))
    assert (result.source_error, result.target_error) == (None, None)
    assert target.runs is True
    assert target.parts == PARTS
    check_memory(guest, target.ram)
    assert len(result.stream_bytes) == (streams if streams > 1 else 0)
    assert result.progress.full_pages == len(PATTERN)
    assert result.progress.sent_bytes > len(PATTERN) * PAGE


def test_all_pages_travel_on_the_further_streams() -> None:
    result = migrate(WritingGuest(CONFIG, PATTERN), FakeTarget(), Settings(streams=2))
    assert result.sent_bytes < 10_000


@settings(max_examples=100, deadline=None)
@given(guests(), st.integers(2, 4), st.sampled_from([0.0, 0.3]))
def test_the_newest_copy_of_each_page_arrives(
    guest: WritingGuest, streams: int, downtime_limit_s: float
) -> None:
    """Pages are rewritten within and between rounds, and no older copy replaces a newer one."""
    target = FakeTarget()
    settings = Settings(streams=streams, downtime_limit_s=downtime_limit_s)
    result = migrate(guest, target, settings)
    assert (result.source_error, result.target_error) == (None, None)
    assert target.runs is True
    check_memory(guest, target.ram)


QUICK = Timeouts(hello=5, welcome=0.5, message=0.5, abort=0.2)


class HandmadeSource:
    """A source whose messages a test sends, with two streams that have joined `target`.

    Each stream sends `early` together with its hello.
    """

    def __init__(self, target: FakeTarget, timeouts: Timeouts, early: bytes = b"") -> None:
        self._early = early
        one, other = socket.socketpair()
        self.first = Wire(one)
        self.error: Exception | None = None
        self._destination = DestinationMigration(target, Wire(other), timeouts)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.first.deadline = time.monotonic() + 20
        self.first.send(messages.Hello(CONFIG, "none", 2).record().encode())
        token = self._receive(messages.Welcome(bytes(messages.TOKEN_BYTES)))
        self.streams = [self._join(token[-messages.TOKEN_BYTES :], number) for number in (1, 2)]
        assert target.ram is not None
        self.expect(messages.StreamsJoined())

    def _run(self) -> None:
        try:
            self._destination.run()
        except MigrationError as error:
            self.error = error

    def _join(self, token: bytes, number: int) -> Wire:
        one, other = socket.socketpair()
        link = Wire(one)
        link.send(messages.StreamHello(token, number).record().encode() + self._early)
        join(self._destination, Wire(other))
        return link

    def expect(self, message: messages.FromDestination) -> None:
        """Receive `message`."""
        assert self._receive(message) == message.record().encode()

    def _receive(self, like: messages.FromDestination) -> bytes:
        return self.first.receive(len(like.record().encode()))

    def end(self) -> str:
        """Wait for the destination, close all, and return its error."""
        self._thread.join(20)
        assert not self._thread.is_alive()
        for link in (self.first, *self.streams):
            link.close()
        return str(self.error)


END = messages.RoundEnd(1).record().encode()
ACK = messages.RoundAck(1)


def block(value: int) -> bytes:
    """Return page 0, filled with `value`, without a checksum."""
    pages = messages.Pages(0, b"\x01" + bytes(messages.BITMAP_BYTES - 1))
    return pages.record().encode() + bytes([value]) * PAGE + bytes(8)


# --- The barrier of rounds ------------------------------------------------------------------------
def test_a_round_is_acknowledged_when_it_has_ended_on_all_streams() -> None:
    """The source of this test ends the round on one stream and begins the next one there."""
    target = FakeTarget()
    source = HandmadeSource(target, Timeouts(message=20, abort=0.2))
    source.first.send(END)
    source.streams[0].send(END + block(8))  # the next round, too early
    time.sleep(0.1)
    assert not source.first.readable(), "the round has not ended on the second stream"
    assert target.ram is not None
    assert target.ram.page(0) == bytes(PAGE), "the next round has begun"
    source.streams[1].send(block(7) + END)
    source.expect(ACK)
    ends_at = time.monotonic() + 20
    while target.ram.page(0) != bytes([8]) * PAGE and time.monotonic() < ends_at:
        time.sleep(0.01)
    assert target.ram.page(0) == bytes([8]) * PAGE
    for link in (source.first, *source.streams):
        link.abort()
    source.end()


def test_messages_that_arrive_together_with_the_hello_of_a_stream_are_read() -> None:
    target = FakeTarget()
    source = HandmadeSource(target, Timeouts(message=20, abort=0.2), early=block(6) + END)
    source.first.send(END)
    source.expect(ACK)
    assert target.ram is not None
    assert target.ram.page(0) == bytes([6]) * PAGE
    for link in (source.first, *source.streams):
        link.abort()
    source.end()


# --- Stalled peers --------------------------------------------------------------------------------
@pytest.mark.parametrize("sent", [0, 30, 150, 2000])
@pytest.mark.parametrize("dribbling", [False, True])
def test_a_stream_that_stalls_ends_the_migration(sent: int, dribbling: bool) -> None:
    """In the place of a message, in its header, in its payload, in the contents of pages."""
    target = FakeTarget()
    source = HandmadeSource(target, QUICK)
    source.first.send(END)
    source.streams[0].send(END)
    source.streams[1].send(block(1)[:sent])
    begin = time.monotonic()
    while dribbling and source.error is None and sent < 3000:
        with suppress(MigrationError):
            source.streams[1].send(block(1)[sent : sent + 1])
        sent += 1
        time.sleep(0.02)
    assert source.end() == "stream 2: the source has not sent a whole message for 0.5 s"
    assert source.error is not None
    assert source.error.__cause__ is not source.error
    assert time.monotonic() - begin < 5
    assert target.runs is None


def test_a_stream_may_be_idle_while_another_is_not() -> None:
    target = FakeTarget()
    source = HandmadeSource(target, QUICK)
    for value in range(1, 8):
        source.streams[0].send(block(value))
        time.sleep(0.2)
    for link in (source.first, *source.streams):
        link.send(END)
    source.expect(ACK)
    assert target.ram is not None
    assert target.ram.page(0) == bytes([7]) * PAGE
    source.first.close()
    assert "has closed the connection" in source.end()


def test_a_message_after_an_idle_time_has_time_to_arrive() -> None:
    """It begins just before the deadline would have passed without the other stream."""
    target = FakeTarget()
    source = HandmadeSource(target, Timeouts(hello=5, message=1, abort=0.2))
    for _ in range(6):
        source.streams[0].send(block(1))
        time.sleep(0.15)
    source.streams[1].send(block(2)[:150])
    time.sleep(0.4)
    source.streams[1].send(block(2)[150:])
    for link in (source.first, *source.streams):
        link.send(END)
    source.expect(ACK)
    assert target.ram is not None
    assert target.ram.page(0) == bytes([2]) * PAGE
    source.first.close()
    source.end()


class HandmadeDestination(threading.Thread):
    """A destination that welcomes a source, confirms its streams if it `joins`, and reads no more.

    `connect` is how the source connects to it again.
    """

    def __init__(self, *, joins: bool) -> None:
        super().__init__()
        one, other = socket.socketpair()
        self.link, self._link = Wire(one), Wire(other)
        self._joins = joins
        self._streams: list[socket.socket] = []
        self.start()

    def connect(self) -> Wire:
        one, other = socket.socketpair()
        self._streams.append(other)
        return Wire(one)

    def run(self) -> None:
        reader = SourceReader({})
        while not isinstance(reader.next(), messages.Hello):
            reader.feed(self._link.receive(reader.wanted_bytes))
        self._link.send(messages.Welcome(bytes(messages.TOKEN_BYTES)).record().encode())
        if self._joins:
            self._link.send(messages.StreamsJoined().record().encode())

    def close(self) -> None:
        self.join()
        self._link.close()
        for stream in self._streams:
            stream.close()


def two_streams(
    guest: WritingGuest,
    destination: HandmadeDestination,
    connect: Callable[[], Wire] | None = None,
    timeouts: Timeouts = TIMEOUTS,
) -> SourceMigration:
    """Return the migration of `guest` to `destination` over two streams, which `connect` makes."""
    settings, connect = Settings(streams=2), connect or destination.connect
    return SourceMigration(
        guest, destination.link, settings, MigrationProgress(), timeouts, connect
    )


@pytest.mark.parametrize(
    ("joins", "reason"),
    [
        (False, "the streams have not joined within 0.5 s"),
        (True, r"the destination has not taken a message on stream \d for 0.5 s"),
    ],
)
def test_a_destination_that_stalls_does_not_keep_the_guest(joins: bool, reason: str) -> None:
    destination = HandmadeDestination(joins=joins)
    guest = WritingGuest(CONFIG, PATTERN)
    source = two_streams(guest, destination, timeouts=QUICK)
    begin = time.monotonic()
    with pytest.raises(MigrationError, match=reason):
        source.run()
    assert 0.4 < time.monotonic() - begin < 5
    assert guest.running
    destination.close()


def test_a_round_does_not_end_before_all_streams_are_connected() -> None:
    """The destination of this test confirms them before they are."""
    destination = HandmadeDestination(joins=True)
    connected: list[bytes] = []

    def connect() -> Wire:
        time.sleep(0.2)
        link = destination.connect()
        send = link.send

        def record(data: Buffer) -> None:
            connected.append(bytes(data))
            send(data)

        link.send = record  # type: ignore[method-assign]
        return link

    source = two_streams(WritingGuest(CONFIG), destination, connect, QUICK)
    with pytest.raises(MigrationError, match="has not answered for"):
        source.run()
    token = bytes(messages.TOKEN_BYTES)
    hellos = {messages.StreamHello(token, number).record().encode() for number in (1, 2)}
    assert set(connected[:2]) == hellos
    assert connected[2:] == [END, END]
    destination.close()


def test_a_cancellation_ends_the_wait_for_a_stream_at_once() -> None:
    destination = HandmadeDestination(joins=True)
    guest = WritingGuest(CONFIG, PATTERN)
    source = two_streams(guest, destination)
    threading.Timer(0.3, source.cancel).start()
    begin = time.monotonic()
    with pytest.raises(Cancelled):
        source.run()
    assert time.monotonic() - begin < 5
    assert guest.running
    destination.close()


def test_a_stream_that_cannot_connect_ends_the_migration_at_once() -> None:
    def connect() -> Wire:
        raise UserError("no destination can be reached at tcp:b:1: connection refused")

    destination = HandmadeDestination(joins=False)
    guest = WritingGuest(CONFIG, PATTERN)
    source = two_streams(guest, destination, connect)
    begin = time.monotonic()
    with pytest.raises(MigrationError, match=r"^stream \d: no destination can be reached at"):
        source.run()
    assert time.monotonic() - begin < 5
    assert guest.running
    destination.close()


def test_the_bandwidth_limit_is_that_of_all_streams_together() -> None:
    before = [PageWrite(pfn, 5) for pfn in range(2048)]
    limit = 16 * MIB
    result = migrate(
        WritingGuest(CONFIG, before), FakeTarget(), Settings(max_bandwidth=limit, streams=4)
    )
    assert result.source_error is None
    assert result.progress.total_s > 0.9 * 6 * MIB / limit, "the last block is not waited for"
    assert result.progress.bandwidth < 1.4 * limit
