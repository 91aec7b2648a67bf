# SPDX-License-Identifier: Apache-2.0
"""Pre-copy: copy guest memory in rounds while the guest runs and changes it.

Live migration and snapshots both copy this way:

    with machine.log_dirty_pages() as log:
        unused = ...                                # ask the guest which pages it does not use
        precopy = PreCopy(memory, log, unused)      # selects the pages of the first round
        while worthwhile:
            precopy.copy(sink)                      # one round
            precopy.collect()                       # what has changed since
        ...                                         # stop the guest
        precopy.collect()
        precopy.copy(sink, last=True)               # the last round

The first round takes the pages that have memory behind them on the host, except those that the
guest does not use. A page without memory behind it reads as zeros: it was never touched, or it is
in the balloon. An unused page may be left out because the dirty log was on before the guest was
asked: if the guest has written to the page since, the log names it. Every later round takes what
the log names.

A round goes through RAM in chunks of 64 MiB. The dirty log of a chunk is cleared before its pages
are read, so a page written after it was copied is in the log again, and no change can be missed.
The sink is told which pages of the chunk hold anything but zeros; the memory of a restored guest is
zeros to begin with, so zero pages matter only where an earlier round has copied something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from pyvmm_native.pages import bitmap, nonzero, touched
from pyvmm_native.runs import PageRuns

if TYPE_CHECKING:
    from pyvmm.memory.dirty_log import DirtyLog
    from pyvmm_native.memory import GuestMemory

CHUNK_PAGES = 16384
"""Pages, 64 MiB, that the dirty log is cleared for at once."""


class UnusedPages(NamedTuple):
    """Pages that the guest did not use at some moment after the request."""

    pages: PageRuns
    how: str
    """The request that the guest answered, or the reason why it has not."""


NOT_QUERIED = UnusedPages(PageRuns(), "query disabled")


class Chunk(NamedTuple):
    """Pages of one round within `CHUNK_PAGES` of guest-physical address space."""

    start_pfn: int
    pages: PageRuns
    """All pages of the chunk that this round deals with."""
    populated: PageRuns
    """Those with memory behind them on the host."""
    nonzero: PageRuns
    """Those that hold anything but zeros."""


ChunkSink: TypeAlias = Callable[[Chunk], None]


class PreCopy:
    """Copies `memory`, whose changes are in `log`, round by round.

    `unused` is the guest's answer to a request sent while the log was on; `populated` are the pages
    of RAM that have memory behind them, if that is known. Every call may take seconds, construction
    included.

    Threads: snapshot, migration; one thread for the whole copy.
    """

    def __init__(
        self,
        memory: GuestMemory,
        log: DirtyLog,
        unused: UnusedPages,
        populated: PageRuns | None = None,
    ) -> None:
        self._memory = memory
        self._log = log
        ram = PageRuns(memory.page_ranges)
        if populated is None:
            # Unused pages are not looked up on the host: that takes time for each of them.
            selected = touched(memory, ram.subtract(unused.pages))
        else:
            selected = populated.subtract(unused.pages)
        # The log names pages written after the guest answered, or first touched after the lookup.
        changed = log.collect()
        self.todo = selected.union(changed)
        """Pages that the next round deals with."""
        self.skipped = ram.intersect(unused.pages).subtract(changed)
        """Pages left out of the first round because they are unused."""

    def copy(self, sink: ChunkSink, *, last: bool = False) -> None:
        """Hand all pages of `todo` to `sink`, chunk by chunk; what it raises ends the round.

        In the `last` round nothing changes memory, so the log is left as it is: write-protecting
        pages again would take time while the guest is paused.
        """
        todo, self.todo = self.todo, PageRuns()
        memory, log = self._memory, self._log
        for start_pfn, pages in chunks(memory, todo):
            if not last:
                log.clear(start_pfn, CHUNK_PAGES)
            populated = touched(memory, pages)
            sink(Chunk(start_pfn, pages, populated, nonzero(memory, populated)))

    def collect(self) -> None:
        """Add the pages that have changed since their chunk was last cleared to `todo`."""
        self.todo = self.todo.union(self._log.collect())


def chunks(memory: GuestMemory, pages: PageRuns) -> Iterator[tuple[int, PageRuns]]:
    """Yield (first page frame, pages) for each chunk of RAM that has any of `pages`."""
    for start_pfn, count in memory.page_ranges:
        bits = bitmap(pages, start_pfn, -(-count // CHUNK_PAGES) * CHUNK_PAGES)
        for offset in range(0, len(bits), CHUNK_PAGES // 8):
            chunk_pfn = start_pfn + 8 * offset
            found = PageRuns.from_bitmap(bits[offset : offset + CHUNK_PAGES // 8], chunk_pfn)
            if found:
                yield chunk_pfn, found
