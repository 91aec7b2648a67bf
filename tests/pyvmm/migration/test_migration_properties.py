# SPDX-License-Identifier: Apache-2.0
"""Memory arrives whatever the guest writes; after any failure exactly one side has the guest."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.migration.errors import Cancelled, MigrationError, SwitchoverUnconfirmed
from pyvmm.migration.progress import Settings
from pyvmm.migration.source import SourceMigration
from pyvmm.units import MIB
from pyvmm_native.pages import touched
from pyvmm_native.runs import PageRuns
from tests.pyvmm.migration.migration_guest import (
    CONFIG,
    HOT,
    PAGE,
    PARTS,
    FakeTarget,
    MigrationResult,
    PageWrite,
    WritingGuest,
    check_memory,
    config_of,
    cut_at,
    flip_at,
    guests,
    migrate,
)

pytestmark = pytest.mark.usefixtures("no_minimum_round_time")


@settings(max_examples=150, deadline=None)
@given(guests(), st.sampled_from([0.0, 0.3]))
def test_all_memory_arrives_at_the_destination(
    guest: WritingGuest, downtime_limit_s: float
) -> None:
    target = FakeTarget()
    result = migrate(guest, target, Settings(downtime_limit_s=downtime_limit_s))
    assert (result.source_error, result.target_error) == (None, None)
    assert target.runs is True
    assert not guest.running
    assert target.parts == PARTS
    check_memory(guest, target.ram)
    assert result.progress.remaining_pages == 0


def check_one_side(guest: WritingGuest, target: FakeTarget, result: MigrationResult) -> None:
    """Exactly one side has the guest; the source knows which, unless the commit was unconfirmed."""
    if isinstance(result.source_error, SwitchoverUnconfirmed):
        assert not guest.running
    elif result.source_error is None:
        assert not guest.running
        assert target.runs
    else:
        assert isinstance(result.source_error, MigrationError)
        assert guest.running
        assert target.runs is None
    if target.runs:
        check_memory(guest, target.ram)
    else:
        assert isinstance(result.target_error, MigrationError)


def lengths() -> tuple[int, int]:
    """Return the bytes that a migration of `ten_pages` takes, in either direction."""
    result = migrate(ten_pages(), FakeTarget())
    assert result.source_error is None
    return result.sent_bytes, result.replied_bytes


def ten_pages() -> WritingGuest:
    return WritingGuest(CONFIG, [PageWrite(pfn, 7) for pfn in HOT], [PageWrite(0, 8)])


SENT, REPLIED = lengths()


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.integers(0, SENT), st.integers(SENT - 200, SENT)))
def test_one_side_has_the_guest_when_the_source_is_cut_off(offset: int) -> None:
    guest, target = ten_pages(), FakeTarget()
    result = migrate(guest, target, corrupt_source=cut_at(offset))
    check_one_side(guest, target, result)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, REPLIED))
def test_one_side_has_the_guest_when_the_destination_is_cut_off(offset: int) -> None:
    guest, target = ten_pages(), FakeTarget()
    result = migrate(guest, target, corrupt_target=cut_at(offset))
    check_one_side(guest, target, result)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.integers(0, SENT - 1), st.integers(SENT - 200, SENT - 1)), st.integers(0, 7))
def test_a_flipped_bit_from_the_source_aborts_the_migration(offset: int, bit: int) -> None:
    guest, target = ten_pages(), FakeTarget()
    result = migrate(guest, target, corrupt_source=flip_at(offset, bit))
    check_one_side(guest, target, result)
    assert guest.running, "the destination has detected it and aborted"


@settings(max_examples=100, deadline=None)
@given(st.integers(0, REPLIED - 1), st.integers(0, 7))
def test_a_flipped_bit_of_a_reply_aborts_the_migration(offset: int, bit: int) -> None:
    guest, target = ten_pages(), FakeTarget()
    result = migrate(guest, target, corrupt_target=flip_at(offset, bit))
    check_one_side(guest, target, result)
    assert result.source_error is not None


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 25))
def test_a_migration_can_be_cancelled_before_the_commit(message: int) -> None:
    """Before any message, whatever has been sent."""
    countdown = [message]

    def watch(source: SourceMigration, result: MigrationResult) -> None:
        countdown[0] -= 1
        if countdown[0] == -1:
            countdown.append(source.cancel())

    guest, target = ten_pages(), FakeTarget()
    result = migrate(guest, target, watch=watch)
    check_one_side(guest, target, result)
    if countdown[1:] == [True]:
        assert isinstance(result.source_error, Cancelled)
        assert guest.running
    else:
        assert result.source_error is None, "the commit was being sent, or the migration was over"


def test_a_guest_can_be_migrated_after_a_failure() -> None:
    guest, target = ten_pages(), FakeTarget()
    result = migrate(guest, FakeTarget(), corrupt_source=cut_at(SENT // 2))
    assert guest.running, result
    result = migrate(guest, target)
    assert result.source_error is None
    check_memory(guest, target.ram)


def test_ram_above_4_gib_is_migrated() -> None:
    config = config_of(3 * 1024 + 1)
    high = (4 << 30) // PAGE
    low_end = (3 << 30) // PAGE
    pfns = [0, low_end - 1, high, high + 255]
    guest = WritingGuest(config, [PageWrite(pfn, 3) for pfn in pfns], [PageWrite(high + 1, 4)])
    target = FakeTarget()
    assert migrate(guest, target).source_error is None
    assert target.ram is not None
    for pfn in [*pfns, high + 1]:
        assert target.ram.page(pfn) == guest.ram.page(pfn)


@pytest.mark.parametrize("manual", [False, True])
def test_zero_and_unused_pages_are_not_sent(manual: bool) -> None:
    before = [PageWrite(pfn, 5) for pfn in range(1000)] + [
        PageWrite(pfn, 0) for pfn in range(1000, 2000)
    ]
    guest = WritingGuest(CONFIG, before, unused=range(10, 900), manual=manual)
    target = FakeTarget()
    progress = migrate(guest, target).progress
    assert (progress.skipped_pages, progress.full_pages, progress.zero_pages) == (890, 110, 1000)
    assert progress.sent_bytes < 120 * PAGE
    check_memory(guest, target.ram)
    assert target.ram is not None
    assert not any(any(target.ram.page(pfn)) for pfn in range(10, 900))


@pytest.mark.parametrize("value", [-1, 0])
def test_pages_that_become_zero_are_freed_at_the_destination(value: int) -> None:
    """Discarded by the balloon, which KVM does not log, or zeroed."""
    pfns = range(0, 9000, 2)

    def watch(source: SourceMigration, result: MigrationResult) -> None:
        if result.progress.rounds == 0 and result.progress.full_pages == len(pfns):
            guest.write(PageWrite(pfn, value) for pfn in pfns)

    guest, target = WritingGuest(CONFIG, [PageWrite(pfn, 5) for pfn in pfns]), FakeTarget()
    result = migrate(guest, target, watch=watch)
    assert result.source_error is None
    assert target.ram is not None
    assert touched(target.ram.memory, PageRuns(target.ram.memory.page_ranges)).pages == 0


def test_the_bandwidth_limit_is_kept() -> None:
    before = [PageWrite(pfn, 5) for pfn in range(1024)]
    limit = 16 * MIB
    result = migrate(WritingGuest(CONFIG, before), FakeTarget(), Settings(max_bandwidth=limit))
    assert result.progress.total_s > 0.9 * 4 * MIB / limit
    assert result.progress.bandwidth < 1.1 * limit
