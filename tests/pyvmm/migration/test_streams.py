# SPDX-License-Identifier: Apache-2.0
"""A migration over several streams: all memory arrives, and a stream that fails loses nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.migration import messages
from pyvmm.migration import source as source_module
from pyvmm.migration.destination import DestinationMigration
from pyvmm.migration.errors import Cancelled, MigrationError, PeerAborted
from pyvmm.migration.progress import Settings
from pyvmm.migration.source import SourceMigration
from pyvmm.migration.timeouts import Timeouts
from pyvmm.units import MIB
from tests.pyvmm.migration.migration_guest import (
    CONFIG,
    PAGE,
    PAGES,
    PARTS,
    Corruption,
    FakeTarget,
    MigrationResult,
    PageWrite,
    Wire,
    WritingGuest,
    check_memory,
    guests,
    join,
    migrate,
)
from tests.pyvmm.migration.test_migration_properties import check_one_side

PATTERN = [PageWrite(pfn, 1 + pfn * 7 % 255) for pfn in range(0, PAGES, 3)]
"""A third of RAM, in all of its blocks."""
FAULTS = 20


@pytest.fixture(autouse=True, scope="module")
def no_minimum_round_time() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_module, "MIN_ROUND_S", 0.0)
        yield


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


# --- The barrier of rounds ------------------------------------------------------------------------
def test_a_round_is_acknowledged_when_it_has_ended_on_all_streams() -> None:
    """The source of this test ends the round on one stream and begins the next one there."""
    one, other = socket.socketpair()
    target, source = FakeTarget(), Wire(one)
    destination = DestinationMigration(target, Wire(other), Timeouts(message=20, abort=0.2))
    thread = threading.Thread(target=_run, args=(destination,))
    thread.start()
    source.send(messages.Hello(CONFIG, "none", 2).record().encode())
    token = _welcome_token(source)
    first, second = (_joined(destination, token, number) for number in (1, 2))
    joined = messages.StreamsJoined().record().encode()
    assert source.receive(len(joined)) == joined
    end, block = messages.RoundEnd(1).record().encode(), _block(7)
    source.send(end)
    first.send(end + _block(8))  # the next round, too early
    time.sleep(0.1)
    assert target.ram is not None
    assert not source.readable(), "the round has not ended on the second stream"
    assert target.ram.page(0) == bytes(PAGE), "the next round has begun"
    second.send(block + end)
    ack = messages.RoundAck(1).record().encode()
    source.deadline = time.monotonic() + 20
    assert source.receive(len(ack)) == ack
    end_at = time.monotonic() + 20
    while target.ram.page(0) != bytes([8]) * PAGE and time.monotonic() < end_at:
        time.sleep(0.01)
    assert target.ram.page(0) == bytes([8]) * PAGE
    for link in (source, first, second):
        link.close()
    thread.join(20)
    assert not thread.is_alive()


def _run(destination: DestinationMigration) -> None:
    with pytest.raises(MigrationError):
        destination.run()


def _welcome_token(source: Wire) -> bytes:
    size = len(messages.Welcome(bytes(messages.TOKEN_BYTES)).record().encode())
    source.deadline = time.monotonic() + 20
    return source.receive(size)[-messages.TOKEN_BYTES :]


def _joined(destination: DestinationMigration, token: bytes, number: int) -> Wire:
    one, other = socket.socketpair()
    link = Wire(one)
    link.send(messages.StreamHello(token, number).record().encode())
    join(destination, Wire(other))
    return link


def _block(value: int) -> bytes:
    """Return page 0, filled with `value`, without a checksum."""
    pages = messages.Pages(0, b"\x01" + bytes(messages.BITMAP_BYTES - 1))
    return pages.record().encode() + bytes([value]) * PAGE + bytes(8)


# --- Faults ---------------------------------------------------------------------------------------
class FaultyStreams:
    """Applies `corrupt` at byte `offset` of all that the streams together carry."""

    def __init__(self, offset: int, corrupt: Callable[[bytes, int], bytes]) -> None:
        self._offset = offset
        self._corrupt = corrupt
        self._sent = 0
        self._lock = threading.Lock()
        self.occurred = False

    def of(self, number: int) -> Corruption:
        return self._change

    def _change(self, data: bytes, sent: int) -> bytes:
        with self._lock:
            at = self._offset - self._sent
            self._sent += len(data)
        if not 0 <= at < len(data):
            return data
        self.occurred = True
        return self._corrupt(data, at)


def _cut(data: bytes, at: int) -> bytes:
    return data[:at]


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


SMALL = [PageWrite(pfn, 7) for pfn in range(0, PAGES, 64)]


@pytest.mark.parametrize("corrupt", [_cut, _flip])
@pytest.mark.parametrize("fault", range(FAULTS))
def test_a_damaged_stream_ends_the_migration_and_the_guest_stays(
    corrupt: Callable[[bytes, int], bytes], fault: int
) -> None:
    offset = (2 * fault + 1) * (len(SMALL) * PAGE) // (2 * FAULTS)
    streams = FaultyStreams(offset, corrupt)
    guest, target = WritingGuest(CONFIG, SMALL), FakeTarget()
    result = migrate(guest, target, Settings(streams=2), corrupt_stream=streams.of)
    assert streams.occurred
    check_one_side(guest, target, result)
    assert guest.running
    assert "stream " in str(result.target_error)
    assert isinstance(result.source_error, PeerAborted), result.source_error
    assert str(result.target_error) in str(result.source_error)


@pytest.mark.parametrize("corrupt", [_cut, _flip])
@pytest.mark.parametrize("offset", range(0, 184, 9))
def test_a_damaged_hello_of_a_stream_ends_the_migration(
    corrupt: Callable[[bytes, int], bytes], offset: int
) -> None:
    """The connection is refused, so the destination waits for it, and the source gives up."""
    streams = FaultyStreams(offset, corrupt)
    guest, target = WritingGuest(CONFIG, SMALL), FakeTarget()
    timeouts = Timeouts(hello=0.2, abort=0.1)
    result = migrate(
        guest, target, Settings(streams=2), corrupt_stream=streams.of, timeouts=timeouts
    )
    assert streams.occurred
    check_one_side(guest, target, result)
    assert guest.running
    assert result.source_error is not None


@pytest.mark.parametrize("message", range(0, 12, 2))
def test_a_migration_over_streams_can_be_cancelled(message: int) -> None:
    countdown = [message]

    def watch(source: SourceMigration, result: MigrationResult) -> None:
        countdown[0] -= 1
        if countdown[0] == -1:
            countdown.append(source.cancel())

    guest, target = WritingGuest(CONFIG, SMALL), FakeTarget()
    result = migrate(guest, target, Settings(streams=3), watch=watch)
    check_one_side(guest, target, result)
    if countdown[1:] == [True]:
        assert isinstance(result.source_error, Cancelled)
        assert guest.running


def test_the_bandwidth_limit_is_that_of_all_streams_together() -> None:
    before = [PageWrite(pfn, 5) for pfn in range(2048)]
    limit = 16 * MIB
    result = migrate(
        WritingGuest(CONFIG, before), FakeTarget(), Settings(max_bandwidth=limit, streams=4)
    )
    assert result.source_error is None
    assert result.progress.total_s > 0.9 * 6 * MIB / limit, "the last block is not waited for"
    assert result.progress.bandwidth < 1.4 * limit
