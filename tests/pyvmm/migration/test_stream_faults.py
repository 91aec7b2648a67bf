# SPDX-License-Identifier: Apache-2.0
"""Streams that are damaged, cut or cancelled: the guest is whole on one side, and runs there."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from pyvmm.migration.errors import Cancelled, PeerAborted
from pyvmm.migration.progress import Settings
from pyvmm.migration.source import SourceMigration
from pyvmm.migration.timeouts import Timeouts
from tests.pyvmm.migration.migration_guest import (
    CONFIG,
    PAGE,
    PAGES,
    Corruption,
    FakeTarget,
    MigrationResult,
    PageWrite,
    WritingGuest,
    migrate,
)
from tests.pyvmm.migration.test_migration_properties import check_one_side

FAULTS = 20
SMALL = [PageWrite(pfn, 7) for pfn in range(0, PAGES, 64)]

pytestmark = pytest.mark.usefixtures("no_minimum_round_time")


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
    """The destination refuses the connection, and waits; then the source ends."""
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
