# SPDX-License-Identifier: Apache-2.0
"""Rounds of a guest that writes faster than the link carries, and how they end."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from pyvmm.migration import auto_converge
from pyvmm.migration.errors import Cancelled, MigrationError
from pyvmm.migration.progress import MigrationProgress, Settings
from pyvmm.migration.source import MIN_ROUND_S, SourceMigration
from pyvmm.units import MIB
from tests.pyvmm.migration.migration_guest import (
    PAGE,
    FakeTarget,
    MigrationResult,
    PageWrite,
    WritingGuest,
    config_of,
    cut_at,
    migrate,
    unchanged,
)

BANDWIDTH = 16 * MIB
HOT_PAGES = 2 * MIB // PAGE
PAGES_PER_SECOND = 20_000
SETTINGS = Settings(max_bandwidth=BANDWIDTH, downtime_limit_s=0.02, cpu_throttle_initial=60)


class BusyGuest(WritingGuest):
    """Rewrites its pages for as much of the time as its vCPUs are not throttled."""

    def __init__(self) -> None:
        super().__init__(config_of(64), [PageWrite(pfn, 1) for pfn in range(HOT_PAGES)])
        self._written_until = time.monotonic()
        self._next = 0

    def run_next(self) -> None:
        if not self.running:
            return
        now = time.monotonic()
        throttle = self.throttled[-1] if self.throttled else 0
        rate = PAGES_PER_SECOND * (100 - throttle) / 100
        count = min(int((now - self._written_until) * rate), HOT_PAGES)
        if count:
            self._written_until = now
        for _ in range(count):
            self.write([PageWrite(self._next % HOT_PAGES, 1 + self._next % 255)])
            self._next += 1


def test_the_expected_downtime_is_that_of_the_last_collection() -> None:
    progress = MigrationProgress()
    progress.round_done(sent_bytes=100 * PAGE, seconds=1.0)
    progress.collected(50, 1.0)
    assert progress.expected_downtime_s == 0.5
    progress.done(50, 50)
    assert progress.remaining_pages == 0
    assert progress.expected_downtime_s == 0.5
    progress.collected(0, 1.0)
    assert progress.expected_downtime_s == 0.0


def cancel_when(
    due: Callable[[MigrationProgress], bool],
) -> Callable[[SourceMigration, MigrationResult], None]:
    def watch(source: SourceMigration, result: MigrationResult) -> None:
        if due(result.progress):
            source.cancel()

    return watch


@pytest.fixture
def short_periods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_converge, "PERIOD_S", 0.1)


@pytest.mark.usefixtures("short_periods")
def test_rounds_continue_until_the_migration_is_cancelled() -> None:
    guest, target = BusyGuest(), FakeTarget()
    watch = cancel_when(lambda progress: progress.rounds == 8)
    result = migrate(guest, target, SETTINGS, watch=watch)
    assert isinstance(result.source_error, Cancelled)
    assert guest.running
    assert guest.throttled == []
    assert target.runs is None
    assert result.progress.dirty_pages_rate > 0.5 * BANDWIDTH / PAGE


@pytest.mark.usefixtures("short_periods")
def test_auto_converge_ends_the_rounds() -> None:
    guest, target = BusyGuest(), FakeTarget()
    result = migrate(guest, target, Settings(**{**vars(SETTINGS), "auto_converge": True}))
    assert (result.source_error, result.target_error) == (None, None)
    assert target.runs
    assert target.ram is not None
    for pfn in range(HOT_PAGES):
        assert target.ram.page(pfn) == guest.ram.page(pfn)
    assert guest.throttled[0] == 60
    assert guest.throttled[-1] == 0
    assert guest.throttled[:-1] == sorted(guest.throttled[:-1])


@pytest.mark.usefixtures("short_periods")
@pytest.mark.parametrize("how", ["cancelled", "cut", "refused"])
def test_a_guest_that_stays_is_not_throttled_any_more(how: str) -> None:
    settings = Settings(**{**vars(SETTINGS), "auto_converge": True})

    def refuse() -> None:
        raise MigrationError("it has no room")

    cancel = cancel_when(lambda progress: how == "cancelled" and progress.throttle_percentage > 0)
    guest = BusyGuest()
    target = FakeTarget(refuse if how == "refused" else lambda: None)
    spoil = cut_at(8 * MIB) if how == "cut" else unchanged
    result = migrate(guest, target, settings, watch=cancel, corrupt_source=spoil)
    assert isinstance(result.source_error, MigrationError)
    assert guest.running
    assert guest.throttled[0] == 60
    assert guest.throttled[-1] == 0
    assert result.progress.throttle_percentage == 0


def test_short_rounds_begin_at_most_every_min_round() -> None:
    """One page changes all the time, and no downtime is allowed."""
    guest, target = WritingGuest(config_of(64)), FakeTarget()
    begin = time.monotonic()

    def watch(source: SourceMigration, result: MigrationResult) -> None:
        guest.write([PageWrite(7, 1)])
        if time.monotonic() - begin > 10 * MIN_ROUND_S:
            source.cancel()

    result = migrate(guest, target, Settings(downtime_limit_s=0.0), watch=watch)
    assert isinstance(result.source_error, Cancelled)
    assert 2 < result.progress.rounds <= 11


def test_a_new_bandwidth_limit_applies_within_a_round() -> None:
    """A round that would take a minute is over soon after the limit is lifted."""
    guest, target = (
        WritingGuest(config_of(64), [PageWrite(pfn, 1) for pfn in range(16 * 256)]),
        FakeTarget(),
    )
    begin = time.monotonic()

    def watch(source: SourceMigration, result: MigrationResult) -> None:
        if result.progress.sent_bytes > 0:
            source.settings = Settings()

    result = migrate(guest, target, Settings(max_bandwidth=MIB // 4), watch=watch)
    assert result.source_error is None
    assert time.monotonic() - begin < 30


def test_a_short_round_counts_only_if_it_was_faster() -> None:
    progress = MigrationProgress()
    progress.round_done(1000, 1.0)
    assert progress.bandwidth == 1000
    progress.round_done(900, 1.0)
    assert progress.bandwidth == 1000, "too short to count"
    progress.round_done(1000, 0.5)
    assert progress.bandwidth == 2000
    progress.round_done(10 * MIB, 100.0)
    assert progress.bandwidth == MIB / 10
