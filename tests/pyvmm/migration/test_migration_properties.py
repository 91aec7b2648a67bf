# SPDX-License-Identifier: Apache-2.0
"""Whatever a guest writes and whenever, its memory arrives; whatever breaks, one side has it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.migration import source as precopy
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
    Act,
    FakeTarget,
    Story,
    WritingGuest,
    check_memory,
    config_of,
    cut_at,
    flip_at,
    guests,
    migrate,
)


@pytest.fixture(autouse=True, scope="module")
def rounds_without_a_rest() -> Iterator[None]:
    """Many a migration here has dozens of rounds that are over at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precopy, "MIN_ROUND_S", 0.0)
        yield


@settings(max_examples=150, deadline=None)
@given(guests(), st.sampled_from([0.0, 0.3]))
def test_memory_arrives(guest: WritingGuest, downtime_limit_s: float) -> None:
    home = FakeTarget()
    story = migrate(guest, home, Settings(downtime_limit_s=downtime_limit_s))
    assert (story.source_error, story.target_error) == (None, None)
    assert home.runs is True
    assert not guest.running
    assert home.parts == PARTS
    check_memory(guest, home.ram)
    assert story.progress.remaining_pages == 0


def check_one_side(guest: WritingGuest, home: FakeTarget, story: Story) -> None:
    """One side has the guest, and the source knows which unless the commit was not answered."""
    if isinstance(story.source_error, SwitchoverUnconfirmed):
        assert not guest.running
    elif story.source_error is None:
        assert not guest.running
        assert home.runs
    else:
        assert isinstance(story.source_error, MigrationError)
        assert guest.running
        assert home.runs is None
    if home.runs:
        check_memory(guest, home.ram)
    else:
        assert isinstance(story.target_error, MigrationError)


def lengths() -> tuple[int, int]:
    """How many bytes an undisturbed migration of `ten_pages` takes, in either direction."""
    story = migrate(ten_pages(), FakeTarget())
    assert story.source_error is None
    return story.sent_bytes, story.replied_bytes


def ten_pages() -> WritingGuest:
    return WritingGuest(CONFIG, [Act(pfn, 7) for pfn in HOT], [Act(0, 8)])


SENT, REPLIED = lengths()


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.integers(0, SENT), st.integers(SENT - 200, SENT)))
def test_the_source_is_cut_off(place: int) -> None:
    guest, home = ten_pages(), FakeTarget()
    story = migrate(guest, home, spoil_source=cut_at(place))
    check_one_side(guest, home, story)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, REPLIED))
def test_the_destination_is_cut_off(place: int) -> None:
    guest, home = ten_pages(), FakeTarget()
    story = migrate(guest, home, spoil_target=cut_at(place))
    check_one_side(guest, home, story)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.integers(0, SENT - 1), st.integers(SENT - 200, SENT - 1)), st.integers(0, 7))
def test_a_bit_is_flipped_on_the_way(place: int, bit: int) -> None:
    guest, home = ten_pages(), FakeTarget()
    story = migrate(guest, home, spoil_source=flip_at(place, bit))
    check_one_side(guest, home, story)
    assert guest.running, "the destination has noticed, and has said so"


@settings(max_examples=100, deadline=None)
@given(st.integers(0, REPLIED - 1), st.integers(0, 7))
def test_a_bit_of_a_reply_is_flipped(place: int, bit: int) -> None:
    guest, home = ten_pages(), FakeTarget()
    story = migrate(guest, home, spoil_target=flip_at(place, bit))
    check_one_side(guest, home, story)
    assert story.source_error is not None


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 25))
def test_it_is_cancelled(message: int) -> None:
    """Before any message; nothing that was sent before counts."""
    countdown = [message]

    def watch(precopy: SourceMigration, story: Story) -> None:
        countdown[0] -= 1
        if countdown[0] == -1:
            countdown.append(precopy.cancel())

    guest, home = ten_pages(), FakeTarget()
    story = migrate(guest, home, watch=watch)
    check_one_side(guest, home, story)
    if countdown[1:] == [True]:
        assert isinstance(story.source_error, Cancelled)
        assert guest.running
    else:
        assert story.source_error is None, "the commit was on its way, or all was over"


def test_the_same_guest_may_try_again() -> None:
    guest, home = ten_pages(), FakeTarget()
    story = migrate(guest, FakeTarget(), spoil_source=cut_at(SENT // 2))
    assert guest.running, story
    story = migrate(guest, home)
    assert story.source_error is None
    check_memory(guest, home.ram)


def test_ram_above_the_hole() -> None:
    config = config_of(3 * 1024 + 1)
    high = (4 << 30) // PAGE
    low_end = (3 << 30) // PAGE
    places = [0, low_end - 1, high, high + 255]
    guest = WritingGuest(config, [Act(pfn, 3) for pfn in places], [Act(high + 1, 4)])
    home = FakeTarget()
    assert migrate(guest, home).source_error is None
    assert home.ram is not None
    for pfn in [*places, high + 1]:
        assert home.ram.page(pfn) == guest.ram.page(pfn)


@pytest.mark.parametrize("manual", [False, True])
def test_what_is_empty_or_unused_is_not_sent(manual: bool) -> None:
    before = [Act(pfn, 5) for pfn in range(1000)] + [Act(pfn, 0) for pfn in range(1000, 2000)]
    guest = WritingGuest(CONFIG, before, unused=range(10, 900), manual=manual)
    home = FakeTarget()
    progress = migrate(guest, home).progress
    assert (progress.skipped_pages, progress.full_pages, progress.zero_pages) == (890, 110, 1000)
    assert progress.sent_bytes < 120 * PAGE
    check_memory(guest, home.ram)
    assert home.ram is not None
    assert not any(any(home.ram.page(pfn)) for pfn in range(10, 900))


@pytest.mark.parametrize("value", [-1, 0])
def test_what_has_become_empty_is_freed_at_the_destination(value: int) -> None:
    """Given to the balloon, which no KVM logs, or zeroed."""
    pfns = range(0, 9000, 2)

    def watch(precopy: SourceMigration, story: Story) -> None:
        if story.progress.rounds == 0 and story.progress.full_pages == len(pfns):
            guest.do(Act(pfn, value) for pfn in pfns)

    guest, home = WritingGuest(CONFIG, [Act(pfn, 5) for pfn in pfns]), FakeTarget()
    story = migrate(guest, home, watch=watch)
    assert story.source_error is None
    assert home.ram is not None
    assert touched(home.ram.memory, PageRuns(home.ram.memory.page_ranges)).pages == 0


def test_bandwidth_is_limited() -> None:
    before = [Act(pfn, 5) for pfn in range(1024)]
    limit = 16 * MIB
    story = migrate(WritingGuest(CONFIG, before), FakeTarget(), Settings(max_bandwidth=limit))
    assert story.progress.total_s > 0.9 * 4 * MIB / limit
    assert story.progress.bandwidth < 1.1 * limit
