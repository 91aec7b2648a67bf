# SPDX-License-Identifier: Apache-2.0
"""The request that a guest answers with its unused pages, or the reason why it does not."""

from __future__ import annotations

import asyncio
from typing import cast

from pyvmm.balloon.guest_requests import DriverUnavailable, GuestRequestError, RequestTimeout
from pyvmm.balloon.misc_requests import MiscRequests
from pyvmm.balloon.unused_pages import query_unused_pages
from pyvmm.memory.precopy import UnusedPages
from pyvmm.units import MIB
from pyvmm_native.runs import PageRuns
from tests.pyvmm.balloon.test_free_page_hints import HINTED, settle
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm

LONG_S = 20.0
PAGES = PageRuns([(5, 3)])


class AnsweringMisc:
    """Satisfies `MiscRequests.unused_pages`: answers `pages`, or raises `error`."""

    def __init__(self, pages: PageRuns, error: GuestRequestError | None = None) -> None:
        self._pages = pages
        self._error = error

    async def unused_pages(self, timeout_s: float) -> PageRuns:
        if self._error is not None:
            raise self._error
        return self._pages


def query(misc: AnsweringMisc, timeout_s: float = LONG_S) -> UnusedPages:
    """Query a guest that gives hints, if it is asked for them."""

    async def main() -> UnusedPages:
        vm = InMemoryVm(64 * MIB)
        hints, balloon = vm.free_page_hints, vm.hint_guest.board.balloon
        requests = cast(MiscRequests, misc)
        unused = await query_unused_pages(balloon, requests, hints, timeout_s)
        await settle()
        assert not vm.hint_guest.hinted, "the guest has its pages back"
        return unused

    return asyncio.run(main())


def test_an_answer_on_the_misc_queue_is_used() -> None:
    assert query(AnsweringMisc(PAGES)) == UnusedPages(PAGES, "answered on the misc queue")


def test_a_guest_without_a_misc_queue_is_asked_for_hints() -> None:
    unused = query(AnsweringMisc(PAGES, DriverUnavailable("there is none")))
    assert unused == UnusedPages(HINTED, "answered by free page hints")


def test_a_guest_that_does_not_answer_has_no_unused_pages() -> None:
    silent = RequestTimeout("the guest has not answered within 1 s")
    assert query(AnsweringMisc(PAGES, silent)) == UnusedPages(PageRuns(), str(silent))


def test_a_time_out_of_0_disables_the_query() -> None:
    assert query(AnsweringMisc(PAGES), timeout_s=0.0) == UnusedPages(PageRuns(), "query disabled")
