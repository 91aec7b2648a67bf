# SPDX-License-Identifier: Apache-2.0
"""Which pages of a guest a copy needs, and what became of the others.

A page without memory behind it on the host reads as zeros: it was never touched, or it was given
away through the balloon. One that the guest said it does not use is left out, too, unless it has
been written since before the guest was asked. Of what is left, pages of zeros need not be copied:
memory that holds a restored guest is zeros to begin with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyvmm.balloon.guest_requests import DriverUnavailable, GuestRequestError
from pyvmm.snapshot.report import PageReport
from pyvmm_native.memory import GuestMemory
from pyvmm_native.pages import nonzero, touched
from pyvmm_native.runs import PageRuns

if TYPE_CHECKING:
    from devices.balloon.device import BalloonDevice
    from pyvmm.balloon.free_page_hints import FreePageHints
    from pyvmm.balloon.misc_requests import MiscRequests


@dataclass(frozen=True)
class UnusedPages:
    """Pages that the guest did not use when it looked."""

    pages: PageRuns
    how: str
    """Who said so, or why nobody did."""


async def ask_unused(
    balloon: BalloonDevice, questions: MiscRequests, hints: FreePageHints, timeout_s: float
) -> UnusedPages:
    """Ask the guest, either way it may understand; no answer is an answer, too.

    Free page hints go back to the guest at once. What it does with them then is in the log of
    writes, which must have begun before.
    """
    nothing = PageRuns()
    if balloon.poison_val:
        # Its kernel checks, when it takes a free page, that the poison is still there.
        return UnusedPages(nothing, "not asked, as the guest poisons its free pages")
    try:
        return UnusedPages(await questions.unused_pages(timeout_s), "answered on the misc queue")
    except DriverUnavailable:
        pass
    except GuestRequestError as error:
        return UnusedPages(nothing, str(error))
    try:
        async with hints.held(timeout_s) as held:
            return UnusedPages(held.pages, "answered by free page hints")
    except GuestRequestError as error:
        return UnusedPages(nothing, str(error))


class PageSelection:
    """What becomes of each page of `memory`, as of the last look at it.

    `look` again at pages that have changed.
    """

    def __init__(self, memory: GuestMemory, unused: UnusedPages) -> None:
        self._memory = memory
        self._ram = PageRuns(memory.page_ranges)
        self._asked = unused.how
        there = touched(memory, self._ram)
        self._absent = self._ram.subtract(there)
        self._unused = there.intersect(unused.pages)

    def first(self, changed: PageRuns) -> PageRuns:
        """Pages to look at to begin with.

        `changed` are those changed since before the guest was asked which it does not use.
        """
        return self._ram.subtract(self._absent).subtract(self._unused).union(changed)

    def look(self, pages: PageRuns) -> PageRuns:
        """Those of `pages` that hold something now."""
        there = touched(self._memory, pages)
        self._unused = self._unused.subtract(pages)
        self._absent = self._absent.subtract(pages).union(pages.subtract(there))
        return nonzero(self._memory, there)

    def report(self, stored: int, ballooned: int) -> PageReport:
        """Where all pages went, so many of them into a file."""
        unused, absent = self._unused.pages, self._absent.pages
        return PageReport(
            stored=stored,
            zero=self._ram.pages - stored - unused - absent,
            unused=unused,
            absent=absent,
            ballooned=ballooned,
            asked=self._asked,
        )
