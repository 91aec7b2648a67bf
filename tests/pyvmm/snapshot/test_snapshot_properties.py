# SPDX-License-Identifier: Apache-2.0
"""Whatever a guest writes while it is copied, the file is what memory was when it stopped."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.memory.precopy import UnusedPages
from pyvmm.snapshot.copier import Copier
from pyvmm.snapshot.format import MAX_ROUNDS
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.report import PageReport
from pyvmm.snapshot.writer import SnapshotWriter
from pyvmm.state.config_record import config_record
from pyvmm_native.runs import PageRuns
from tests.pyvmm.migration.migration_guest import (
    CONFIG,
    PAGE,
    PAGES,
    Act,
    PlainRam,
    WritingGuest,
    check_memory,
    guests,
)

SLACK_BYTES = 1 << 16
"""Records, and what a file system needs to know of a file with holes."""


class Taken:
    """A snapshot taken of `guest` in so many rounds while it runs, and one more; read back."""

    def __init__(self, guest: WritingGuest, rounds: int, *, ask: bool = True) -> None:
        looked_at: list[int] = []

        def on_pages(pages: int) -> None:
            looked_at.append(pages)
            guest.go()

        with TemporaryDirectory() as directory:
            path = Path(directory) / "snapshot"
            with guest.log_dirty_pages() as log, SnapshotWriter(path, guest.memory) as file:
                unused = guest.unused_pages(1.0) if ask else UnusedPages(PageRuns(), "not asked")
                copier = Copier(guest.memory, log, file, unused, on_pages)
                for _ in range(rounds):
                    copier.round()
                guest.stop()
                copier.last_round()
                assert not copier.todo
                self.report = copier.report(ballooned=0)
                file.finish([config_record(CONFIG), self.report.record()])
            status = path.stat()
            self.bytes_on_disk, self.looked_at = status.st_blocks * 512, sum(looked_at)
            with SnapshotFile(path, {}) as snapshot:
                self.room, self.pages = snapshot.header.room, snapshot.pages
                self.ram = PlainRam(CONFIG.ram_bytes)
                snapshot.load(self.ram.memory)


@settings(max_examples=150, deadline=None)
@given(guests(), st.integers(0, MAX_ROUNDS - 1))
def test_the_file_is_what_memory_was(guest: WritingGuest, rounds: int) -> None:
    taken = Taken(guest, rounds)
    check_memory(guest, taken.ram)
    report = taken.report
    assert report.stored == taken.pages
    assert report.ram == PAGES
    assert min(report.zero, report.unused, report.absent) >= 0
    assert taken.bytes_on_disk < taken.pages * PAGE + SLACK_BYTES


def test_a_block_that_grows_moves_and_leaves_a_hole() -> None:
    before = [Act(pfn, 1) for pfn in range(64)]
    acts = [Act(pfn, 2) for pfn in range(64, 512)]
    taken = Taken(WritingGuest(CONFIG, before, acts, step=100), 2)
    assert taken.pages == 512 < taken.room
    assert taken.bytes_on_disk < 512 * PAGE + SLACK_BYTES


def test_one_that_shrinks_stays_and_its_rest_is_a_hole() -> None:
    before = [Act(pfn, 1) for pfn in range(512)]
    acts = [Act(pfn, -1) for pfn in range(100, 500)]
    taken = Taken(WritingGuest(CONFIG, before, acts, step=50), 3)
    assert taken.pages == 112 < taken.room
    assert taken.bytes_on_disk < 112 * PAGE + SLACK_BYTES


def test_only_what_was_changed_is_copied_again() -> None:
    before = [Act(pfn, 1) for pfn in range(1000)]
    guest = WritingGuest(CONFIG, before, [Act(7, 2), Act(800, 3)])
    taken = Taken(guest, 2, ask=False)
    assert taken.pages == 1000
    assert 1000 <= taken.looked_at <= 1004


@pytest.mark.parametrize("manual", [False, True])
def test_a_page_that_holds_something_now_and_then(manual: bool) -> None:
    """Looked at while it is zeros, written just before or after its stretch is cleared."""
    for writes in range(2, 24):
        acts = [Act(5, value) for value in [0, 9] * 12][-writes:]
        guest = WritingGuest(CONFIG, [Act(5, 0)], acts, manual=manual)
        check_memory(guest, Taken(guest, 3).ram)


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_where_every_page_went(rounds: int) -> None:
    before = [Act(1, 1), Act(2, 0), Act(3, 3), Act(4, 4)]
    taken = Taken(WritingGuest(CONFIG, before, [], unused=[3, 5]), rounds)
    assert taken.report == PageReport(2, 1, 1, PAGES - 4, 0, "answered")
    assert taken.room == 2
