# SPDX-License-Identifier: Apache-2.0
"""A guest that writes faster than the connection carries: rounds go on, and can be ended."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from pyvmm.migration import auto_converge as converging
from pyvmm.migration.errors import Cancelled, MigrationError
from pyvmm.migration.progress import Progress, Settings
from pyvmm.migration.source import MIN_ROUND_S, SourceMigration
from pyvmm.units import MIB
from tests.pyvmm.migration.migration_guest import (
    PAGE,
    Act,
    FakeTarget,
    Story,
    WritingGuest,
    config_of,
    cut_at,
    migrate,
    untouched,
)

BANDWIDTH = 16 * MIB
HOT_PAGES = 2 * MIB // PAGE
PAGES_PER_SECOND = 20_000
SETTINGS = Settings(max_bandwidth=BANDWIDTH, downtime_limit_s=0.02, cpu_throttle_initial=60)


class BusyGuest(WritingGuest):
    """Writes all of its pages again and again, while its processors do not rest."""

    def __init__(self) -> None:
        super().__init__(config_of(64), [Act(pfn, 1) for pfn in range(HOT_PAGES)])
        self._written_until = time.monotonic()
        self._next = 0

    def go(self) -> None:
        if not self.running:
            return
        now = time.monotonic()
        resting = self.throttled[-1] if self.throttled else 0
        rate = PAGES_PER_SECOND * (100 - resting) / 100
        count = min(int((now - self._written_until) * rate), HOT_PAGES)
        if count:
            self._written_until = now
        for _ in range(count):
            self.do([Act(self._next % HOT_PAGES, 1 + self._next % 255)])
            self._next += 1


def test_what_the_rest_would_take_is_known_while_it_is_sent() -> None:
    progress = Progress()
    progress.round_done(sent_bytes=100 * PAGE, seconds=1.0)
    progress.collected(50, 1.0)
    assert progress.expected_downtime_s == 0.5
    progress.done(50, 50)
    assert progress.remaining_pages == 0
    assert progress.expected_downtime_s == 0.5
    progress.collected(0, 1.0)
    assert progress.expected_downtime_s == 0.0


def cancel_when(due: Callable[[Progress], bool]) -> Callable[[SourceMigration, Story], None]:
    def watch(precopy: SourceMigration, story: Story) -> None:
        if due(story.progress):
            precopy.cancel()

    return watch


@pytest.fixture
def short_periods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converging, "PERIOD_S", 0.1)


@pytest.mark.usefixtures("short_periods")
def test_it_goes_on_for_ever_and_can_be_cancelled() -> None:
    guest, home = BusyGuest(), FakeTarget()
    watch = cancel_when(lambda progress: progress.rounds == 8)
    story = migrate(guest, home, SETTINGS, watch=watch)
    assert isinstance(story.source_error, Cancelled)
    assert guest.running
    assert guest.throttled == []
    assert home.runs is None
    assert story.progress.dirty_pages_rate > 0.5 * BANDWIDTH / PAGE


@pytest.mark.usefixtures("short_periods")
def test_it_converges_when_it_is_slowed_down() -> None:
    guest, home = BusyGuest(), FakeTarget()
    story = migrate(guest, home, Settings(**{**vars(SETTINGS), "auto_converge": True}))
    assert (story.source_error, story.target_error) == (None, None)
    assert home.runs
    assert home.ram is not None
    for pfn in range(HOT_PAGES):
        assert home.ram.page(pfn) == guest.ram.page(pfn)
    assert guest.throttled[0] == 60
    assert guest.throttled[-1] == 0
    assert guest.throttled[:-1] == sorted(guest.throttled[:-1])


@pytest.mark.usefixtures("short_periods")
@pytest.mark.parametrize("how", ["cancelled", "cut", "refused"])
def test_it_is_as_fast_as_before_when_it_stays(how: str) -> None:
    settings = Settings(**{**vars(SETTINGS), "auto_converge": True})

    def refuse() -> None:
        raise MigrationError("it has no room")

    cancel = cancel_when(lambda progress: how == "cancelled" and progress.throttle_percentage > 0)
    guest = BusyGuest()
    home = FakeTarget(refuse if how == "refused" else lambda: None)
    spoil = cut_at(8 * MIB) if how == "cut" else untouched
    story = migrate(guest, home, settings, watch=cancel, spoil_source=spoil)
    assert isinstance(story.source_error, MigrationError)
    assert guest.running
    assert guest.throttled[0] == 60
    assert guest.throttled[-1] == 0
    assert story.progress.throttle_percentage == 0


def test_short_rounds_leave_the_host_its_processors() -> None:
    """One page changes all the time, and no downtime at all is allowed."""
    guest, home = WritingGuest(config_of(64)), FakeTarget()
    begin = time.monotonic()

    def watch(precopy: SourceMigration, story: Story) -> None:
        guest.do([Act(7, 1)])
        if time.monotonic() - begin > 10 * MIN_ROUND_S:
            precopy.cancel()

    story = migrate(guest, home, Settings(downtime_limit_s=0.0), watch=watch)
    assert isinstance(story.source_error, Cancelled)
    assert 2 < story.progress.rounds <= 11


def test_the_bandwidth_may_be_raised_within_a_round() -> None:
    """What would have taken a minute takes the rest of the time that it was slow."""
    guest, home = (
        WritingGuest(config_of(64), [Act(pfn, 1) for pfn in range(16 * 256)]),
        FakeTarget(),
    )
    begin = time.monotonic()

    def watch(precopy: SourceMigration, story: Story) -> None:
        if story.progress.sent_bytes > 0:
            precopy.settings = Settings()

    story = migrate(guest, home, Settings(max_bandwidth=MIB // 4), watch=watch)
    assert story.source_error is None
    assert time.monotonic() - begin < 30


def test_a_short_round_may_show_that_more_is_possible() -> None:
    progress = Progress()
    progress.round_done(1000, 1.0)
    assert progress.bandwidth == 1000
    progress.round_done(900, 1.0)
    assert progress.bandwidth == 1000, "too short to say anything"
    progress.round_done(1000, 0.5)
    assert progress.bandwidth == 2000
    progress.round_done(10 * MIB, 100.0)
    assert progress.bandwidth == MIB / 10
