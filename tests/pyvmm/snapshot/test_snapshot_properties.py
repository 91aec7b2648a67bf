# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a guest that writes to its memory meanwhile hold memory as it was in the end."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.memory.precopy import UnusedPages
from pyvmm.snapshot import writer
from pyvmm.snapshot.copier import Copier
from pyvmm.snapshot.format import MAX_ROUNDS
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.report import PageReport
from pyvmm.snapshot.writer import SnapshotWriter
from pyvmm.state.config_record import config_record
from pyvmm_native.memory import GuestMemory
from pyvmm_native.page_blocks import store_block
from pyvmm_native.runs import PageRuns
from tests.pyvmm.migration.migration_guest import (
    CONFIG,
    PAGE,
    PAGES,
    PageWrite,
    PlainRam,
    WritingGuest,
    check_memory,
    guests,
)

SLACK_BYTES = 1 << 16
"""Records, and what a file system needs to know of a file with holes."""


class Taken:
    """A snapshot of `guest`, taken in `rounds` while it runs and a last one, and read back."""

    def __init__(self, guest: WritingGuest, rounds: int, *, ask: bool = True) -> None:
        copied: list[int] = []

        def on_pages(pages: int) -> None:
            copied.append(pages)
            guest.run_next()

        with TemporaryDirectory() as directory:
            path = Path(directory) / "snapshot"
            with guest.log_dirty_pages() as log, SnapshotWriter(path, guest.memory) as file:
                unused = UnusedPages(PageRuns(), "not asked")
                if ask:
                    unused = guest.request_unused_pages(1.0).result()
                copier = Copier(guest.memory, log, file, unused, on_pages)
                for _ in range(rounds):
                    copier.copy_round()
                guest.stop()
                copier.copy_last_round()
                assert not copier.todo
                self.report = copier.report(ballooned=0)
                file.finish([config_record(CONFIG), self.report.record()])
            status = path.stat()
            self.bytes_on_disk, self.copied = status.st_blocks * 512, sum(copied)
            with SnapshotFile(path, {}) as snapshot:
                self.room, self.pages = snapshot.header.room, snapshot.pages
                self.ram = PlainRam(CONFIG.ram_bytes)
                snapshot.load(self.ram.memory)


@settings(max_examples=150, deadline=None)
@given(guests(), st.integers(0, MAX_ROUNDS - 1))
def test_the_file_holds_memory_as_it_was_when_the_guest_stopped(
    guest: WritingGuest, rounds: int
) -> None:
    taken = Taken(guest, rounds)
    check_memory(guest, taken.ram)
    report = taken.report
    assert report.stored == taken.pages
    assert report.ram == PAGES
    assert min(report.zero, report.unused, report.absent) >= 0
    assert taken.bytes_on_disk < taken.pages * PAGE + SLACK_BYTES


@settings(max_examples=100, deadline=None)
@given(guests(), st.integers(0, MAX_ROUNDS - 1))
def test_a_page_that_changes_between_its_checksum_and_the_file_is_stored_again(
    guest: WritingGuest, rounds: int
) -> None:
    def store(
        memory: GuestMemory, pfn: int, bitmap: bytes, fd: int, offset: int, *, write_behind: bool
    ) -> int:
        crc = store_block(memory, pfn, bitmap, fd, offset, write_behind=write_behind)
        guest.run_next()
        store_block(memory, pfn, bitmap, fd, offset)
        return crc

    with patch.object(writer, "store_block", store):
        check_memory(guest, Taken(guest, rounds).ram)


def test_a_growing_block_moves_and_leaves_a_hole() -> None:
    before = [PageWrite(pfn, 1) for pfn in range(64)]
    writes = [PageWrite(pfn, 2) for pfn in range(64, 512)]
    taken = Taken(WritingGuest(CONFIG, before, writes, step=100), 2)
    assert taken.pages == 512 < taken.room
    assert taken.bytes_on_disk < 512 * PAGE + SLACK_BYTES


def test_a_shrinking_block_stays_and_leaves_a_hole_behind_it() -> None:
    before = [PageWrite(pfn, 1) for pfn in range(512)]
    writes = [PageWrite(pfn, -1) for pfn in range(100, 500)]
    taken = Taken(WritingGuest(CONFIG, before, writes, step=50), 3)
    assert taken.pages == 112 < taken.room
    assert taken.bytes_on_disk < 112 * PAGE + SLACK_BYTES


def test_only_changed_pages_are_copied_again() -> None:
    before = [PageWrite(pfn, 1) for pfn in range(1000)]
    guest = WritingGuest(CONFIG, before, [PageWrite(7, 2), PageWrite(800, 3)])
    taken = Taken(guest, 2, ask=False)
    assert taken.pages == 1000
    assert 1000 <= taken.copied <= 1004


@pytest.mark.parametrize("manual", [False, True])
def test_a_page_that_alternates_between_zeros_and_data_is_saved(manual: bool) -> None:
    """Copied while it is zeros, written just before or after its chunk is cleared."""
    for count in range(2, 24):
        writes = [PageWrite(5, value) for value in [0, 9] * 12][-count:]
        guest = WritingGuest(CONFIG, [PageWrite(5, 0)], writes, manual=manual)
        check_memory(guest, Taken(guest, 3).ram)


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_the_report_accounts_for_every_page(rounds: int) -> None:
    before = [PageWrite(1, 1), PageWrite(2, 0), PageWrite(3, 3), PageWrite(4, 4)]
    taken = Taken(WritingGuest(CONFIG, before, [], unused=[3, 5]), rounds)
    assert taken.report == PageReport(2, 1, 1, PAGES - 4, 0, "answered")
    assert taken.room == 2
