# SPDX-License-Identifier: Apache-2.0
"""Copying a guest's pages into the file of its snapshot, round by round, while it may be running.

The first round takes the pages that hold something and are not known to be unused, each later one
those that have changed since they were last looked at. The last is that of a guest that stands
still, and after it the file is what memory is.

As in `pyvmm.migration.source`, the log is cleared before pages are looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyvmm.memory.dirty_log import CHUNK_PAGES, chunks
from pyvmm.memory.page_selection import PageSelection, UnusedPages
from pyvmm.snapshot.format import BITMAP_BYTES
from pyvmm_native.page_blocks import BLOCK_PAGES
from pyvmm_native.pages import bitmap

if TYPE_CHECKING:
    from pyvmm.memory.dirty_log import DirtyLog
    from pyvmm.snapshot.writer import SnapshotWriter
    from pyvmm_native.memory import GuestMemory
    from pyvmm_native.runs import PageRuns


class Copier:
    """Copies from `memory`, whose changes are in `log`, to `file`.

    `unused` are pages that the guest did not use at some time since the log is on. `on_pages` is
    called with the number of pages just looked at, and may raise to give up. Every call may take
    seconds, making one included.
    """

    def __init__(
        self,
        memory: GuestMemory,
        log: DirtyLog,
        file: SnapshotWriter,
        unused: UnusedPages,
        on_pages: Callable[[int], None],
    ) -> None:
        self._memory = memory
        self._log = log
        self._file = file
        self._on_pages = on_pages
        self.selection = PageSelection(memory, unused)
        self.todo: PageRuns = self.selection.first(log.collect())
        """What the next round will look at."""

    def round(self) -> None:
        """Bring the file up to date with `todo`."""
        for stretch, pages in chunks(self._memory, self.todo):
            self._log.clear(stretch, CHUNK_PAGES)
            full = self.selection.look(pages)
            changed_bits, full_bits = (bitmap(p, stretch, CHUNK_PAGES) for p in (pages, full))
            for place in range(0, len(changed_bits), BITMAP_BYTES):
                changed, kept = (
                    int.from_bytes(bits[place : place + BITMAP_BYTES], "little")
                    for bits in (changed_bits, full_bits)
                )
                if changed:
                    self._file.store((stretch + 8 * place) // BLOCK_PAGES, changed, kept)
                    self._on_pages(changed.bit_count())
        self.todo = self._log.collect()

    def last_round(self) -> None:
        """The same for a guest that stands still and has changed something since `round`."""
        self.todo = self.todo.union(self._log.collect())
        self.round()
