# SPDX-License-Identifier: Apache-2.0
"""Copy guest memory into the file of a snapshot, and account for the pages that are left out.

The rounds are those of `pyvmm.memory.precopy`; each chunk of a round updates the blocks of the file
that it lies in. After the last round, with the guest paused, the file holds what memory does.

Pages are written to the file from RAM, without a copy in between, also while the guest runs. One
that the guest changes between its checksum and the file leaves a block with a wrong checksum. But
the dirty log was cleared before, so it names that page, and a later round stores its block again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyvmm.memory.precopy import CHUNK_PAGES, Chunk, PreCopy, UnusedPages
from pyvmm.snapshot.format import BITMAP_BYTES
from pyvmm.snapshot.report import PageReport
from pyvmm_native.page_blocks import BLOCK_PAGES
from pyvmm_native.pages import bitmap, touched
from pyvmm_native.runs import PageRuns

if TYPE_CHECKING:
    from pyvmm.memory.dirty_log import DirtyLog
    from pyvmm.snapshot.writer import SnapshotWriter
    from pyvmm_native.memory import GuestMemory


class Copier:
    """Copies from `memory`, whose changes are in `log`, to `file`.

    `unused` is the guest's answer to a request sent while the log was on. `on_pages` is called
    with the number of pages just dealt with, and may raise to abort. Every call may take seconds,
    construction included.

    Threads: snapshot; `todo` and `report` event loop, while no round runs.
    """

    def __init__(
        self,
        memory: GuestMemory,
        log: DirtyLog,
        file: SnapshotWriter,
        unused: UnusedPages,
        on_pages: Callable[[int], None],
    ) -> None:
        self._file = file
        self._on_pages = on_pages
        populated = touched(memory, PageRuns(memory.page_ranges))
        self._accounts = _PageAccounts(memory, unused, populated)
        self._precopy = PreCopy(memory, log, unused, populated)

    @property
    def todo(self) -> PageRuns:
        """Pages that the next round deals with."""
        return self._precopy.todo

    def copy_round(self) -> None:
        """Bring the file up to date with `todo`, then collect what has changed meanwhile."""
        self._precopy.copy(self._store)
        self._precopy.collect()

    def copy_last_round(self) -> None:
        """Bring the file up to date with a paused guest, whose last changes are collected."""
        self._precopy.collect()
        self._precopy.copy(self._store, last=True)

    def report(self, ballooned: int) -> PageReport:
        """Account for all pages of RAM, `ballooned` of which are in the balloon."""
        return self._accounts.report(self._file.pages, ballooned)

    def _store(self, chunk: Chunk) -> None:
        self._accounts.update(chunk)
        changed_bits, kept_bits = (
            bitmap(pages, chunk.start_pfn, CHUNK_PAGES) for pages in (chunk.pages, chunk.nonzero)
        )
        for offset in range(0, len(changed_bits), BITMAP_BYTES):
            changed, kept = (
                int.from_bytes(bits[offset : offset + BITMAP_BYTES], "little")
                for bits in (changed_bits, kept_bits)
            )
            if changed:
                self._file.store((chunk.start_pfn + 8 * offset) // BLOCK_PAGES, changed, kept)
                self._on_pages(changed.bit_count())


class _PageAccounts:
    """Accounts for the pages of `memory` that are not in the file.

    `populated` are the pages that have memory behind them.
    """

    def __init__(self, memory: GuestMemory, unused: UnusedPages, populated: PageRuns) -> None:
        ram = PageRuns(memory.page_ranges)
        self._how = unused.how
        self._ram_pages = ram.pages
        self._unused = populated.intersect(unused.pages)
        self._absent = ram.subtract(populated)

    def update(self, chunk: Chunk) -> None:
        """Update the accounting of the pages of `chunk`."""
        self._unused = self._unused.subtract(chunk.pages)
        empty = chunk.pages.subtract(chunk.populated)
        self._absent = self._absent.subtract(chunk.pages).union(empty)

    def report(self, stored: int, ballooned: int) -> PageReport:
        unused, absent = self._unused.pages, self._absent.pages
        zero = self._ram_pages - stored - unused - absent
        return PageReport(stored, zero, unused, absent, ballooned, self._how)
