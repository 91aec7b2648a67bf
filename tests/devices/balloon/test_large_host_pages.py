# SPDX-License-Identifier: Apache-2.0
"""A balloon over host pages that are larger than its own and can be freed as a whole only."""

from __future__ import annotations

from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.balloon import features
from devices.balloon.dialects import BITMAP, NAMES, STANDARD, by_name
from devices.testing.balloon.driver import DEFLATE, INFLATE, BalloonDriver
from devices.testing.balloon.requests import pfn_array
from devices.testing.driver import ALL_FEATURES
from devices.testing.ram import AnonymousRam
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns

HOST_PAGE_PAGES = 16
FIRST_PFN, HOST_PAGES = 8 * MIB // PAGE_BYTES, 6
Request: TypeAlias = tuple[bool, set[int]]
"""True if the pages go into the balloon, and their page frames."""


def start(dialect: str = "standard", accepted: int = ALL_FEATURES) -> BalloonDriver:
    ram = AnonymousRam((0, 64 * MIB), host_page_pages=HOST_PAGE_PAGES)
    return BalloonDriver(by_name(dialect), ram=ram).start(features=accepted)


def host_page(number: int) -> range:
    first = FIRST_PFN + number * HOST_PAGE_PAGES
    return range(first, first + HOST_PAGE_PAGES)


def whole(pages: set[int]) -> set[int]:
    """Return those of `pages` that form whole host pages."""
    return {
        pfn for n in range(HOST_PAGES) if pages.issuperset(host_page(n)) for pfn in host_page(n)
    }


def pages_in(calls: list[PageRuns]) -> set[int]:
    runs = [run for call in calls for run in call]
    return {pfn for first, count in runs for pfn in range(first, first + count)}


_pages = st.sets(st.integers(FIRST_PFN, FIRST_PFN + HOST_PAGES * HOST_PAGE_PAGES - 1), min_size=1)
_host_pages = st.sets(st.sampled_from(range(HOST_PAGES)), min_size=1).map(
    lambda numbers: {pfn for number in numbers for pfn in host_page(number)}
)
_requests = st.lists(st.tuples(st.booleans(), _pages | _host_pages), max_size=12)


@pytest.mark.parametrize("dialect", NAMES)
@given(_requests, st.booleans())
def test_only_what_the_guest_has_given_is_discarded(
    dialect: str, requests: list[Request], must_tell: bool
) -> None:
    """A host page is discarded when it becomes whole, and restored when it is no longer.

    Without MUST_TELL_HOST only one request can make it whole, and it is not restored.
    """
    accepted = ALL_FEATURES if must_tell else ALL_FEATURES & ~features.MUST_TELL_HOST
    driver = start(dialect, accepted)
    ram, inside = driver.board.ram, set[int]()
    for inflates, pages in requests:
        before, discards, restores = whole(inside), len(ram.discarded), len(ram.restored)
        if inflates:
            driver.inflate(pages)
            inside |= pages
        else:
            driver.deflate(pages)
            inside -= pages
        after = whole(inside)
        given = after - before if must_tell else whole(pages) if inflates else set()
        assert pages_in(ram.discarded[discards:]) == given
        assert pages_in(ram.restored[restores:]) == (before - after if must_tell else set())
        kept_bytes = driver.board.balloon.counters.kept_bytes
        assert kept_bytes == (len(inside) - len(after)) * PAGE_BYTES


def test_a_page_used_before_its_deflate_is_served_is_not_discarded() -> None:
    """Without MUST_TELL_HOST a driver need not wait, and each queue is served on its own."""
    driver = start(accepted=ALL_FEATURES & ~features.MUST_TELL_HOST)
    first, *rest = host_page(1)
    driver.inflate([first])
    driver.queues[DEFLATE].add([pfn_array([first])])
    driver.memory.write(first * PAGE_BYTES, b"in use")
    driver.inflate(rest)
    driver.notify(DEFLATE)
    driver.board.serve()
    assert driver.memory.read(first * PAGE_BYTES, 6) == b"in use"
    driver.inflate(host_page(1))
    assert pages_in(driver.board.ram.discarded) == set(host_page(1))


def test_requests_that_wait_together_do_not_make_a_host_page_whole() -> None:
    """Without MUST_TELL_HOST, the driver may use the first half again at any time."""
    driver = start(accepted=ALL_FEATURES & ~features.MUST_TELL_HOST)
    pages, half = host_page(0), HOST_PAGE_PAGES // 2
    for part in (pages[:half], pages[half:], host_page(1)):
        driver.queues[INFLATE].add([pfn_array(part)])
    driver.notify(INFLATE)
    driver.board.serve()
    assert len(driver.queues[INFLATE].take_used()) == 3
    assert pages_in(driver.board.ram.discarded) == set(host_page(1))


@pytest.mark.conformance("5.5.6.2-2")
def test_contents_are_lost_with_the_last_page_only() -> None:
    driver = start()
    pages = host_page(1)
    gpa, size = pages.start * PAGE_BYTES, len(pages) * PAGE_BYTES
    driver.memory.write(gpa, b"\xa5" * size)
    driver.inflate(pages[:-1])
    assert driver.memory.read(gpa, size) == b"\xa5" * size
    driver.inflate(pages[-1:])
    assert driver.memory.read(gpa, size) == bytes(size)


def test_a_reset_empties_the_record() -> None:
    """Pages that a driver gave before it was reset are no longer in the balloon (5.5.6)."""
    driver = start()
    first, second = host_page(0)[:8], host_page(0)[8:]
    driver.inflate([*first, *host_page(1)])
    driver.reset()
    assert driver.board.balloon.counters.kept_bytes == 0
    driver.start()
    driver.inflate(second)
    driver.deflate(host_page(1))
    ram = driver.board.ram
    assert pages_in(ram.discarded) == set(host_page(1))
    assert pages_in(ram.restored) == set()


def test_reported_pages_are_not_in_the_balloon() -> None:
    """The guest may use them at any time, so their host page must not be replaced later."""
    ram = AnonymousRam((0, 64 * MIB), host_page_pages=HOST_PAGE_PAGES)
    driver = BalloonDriver(STANDARD, ram=ram, offered=STANDARD.features.known).start()
    gpa, size = host_page(0).start * PAGE_BYTES, HOST_PAGE_PAGES * PAGE_BYTES
    driver.queues[4].add([], writable_segments=[(gpa, size)])
    driver.notify(4)
    driver.board.serve()
    assert pages_in(ram.discarded) == set(host_page(0))
    driver.inflate(host_page(0)[:4])
    driver.deflate(host_page(0)[:4])
    assert pages_in(ram.restored) == set()


def test_pages_of_4_kib_need_no_record() -> None:
    driver = BalloonDriver(BITMAP).start()
    driver.inflate([FIRST_PFN, FIRST_PFN + 2])
    driver.deflate([FIRST_PFN])
    assert driver.board.balloon.counters.kept_bytes == 0
    assert driver.board.ram.restored == []
