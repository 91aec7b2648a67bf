# SPDX-License-Identifier: Apache-2.0
"""Reported free pages are discarded (5.5.6.7), unless they must keep their contents."""

from __future__ import annotations

import pytest

from devices.balloon import features
from devices.balloon.dialects import STANDARD
from devices.testing.balloon.driver import BalloonDriver
from devices.testing.driver import ALL_FEATURES
from devices.testing.driver_queue import Used
from devices.testing.ram import AnonymousRam
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES

REPORTING = 4
"""Queue number in both numberings when all queues exist."""
OFFERED = STANDARD.features.known
POISON_OFFSET = 12


def reporter(
    *, accepted: int = ALL_FEATURES, ram: AnonymousRam | None = None, poison: int = 0
) -> BalloonDriver:
    """Return a driver that reports free pages; the first 16 MiB of its RAM hold 0xA5."""
    driver = BalloonDriver(STANDARD, ram=ram, offered=OFFERED).start(features=accepted)
    driver.memory.write(0, b"\xa5" * (16 * MIB))
    driver.write_config(POISON_OFFSET, 4, poison)
    return driver


def report(
    driver: BalloonDriver, *pages: tuple[int, int], queue: int = REPORTING, text: bytes = b""
) -> list[Used]:
    driver.queues[queue].add([text] if text else [], writable_segments=pages)
    driver.notify(queue)
    driver.board.serve()
    return driver.queues[queue].take_used()


def pages_with(driver: BalloonDriver, byte: bytes) -> int:
    """Return how many pages of the first 16 MiB hold only `byte`."""
    data = driver.memory.read(0, 16 * MIB)
    page = byte * PAGE_BYTES
    return sum(data[at : at + PAGE_BYTES] == page for at in range(0, len(data), PAGE_BYTES))


@pytest.mark.conformance("5.5.6.7.2-1")
def test_reported_pages_are_discarded_and_no_others() -> None:
    driver = reporter()
    used = report(driver, (2 * MIB, 2 * MIB), (9 * MIB, PAGE_BYTES))
    assert [each.length for each in used] == [0], "nothing was written to them"
    assert driver.memory.read(2 * MIB, 2 * MIB) == bytes(2 * MIB)
    assert driver.memory.read(9 * MIB, PAGE_BYTES) == bytes(PAGE_BYTES)
    assert pages_with(driver, b"\xa5") == 16 * MIB // PAGE_BYTES - 513
    counters = driver.board.balloon.counters
    assert counters.reported_pages == 513
    assert counters.reported_bytes == 513 * PAGE_BYTES
    assert counters.discarded_bytes == 0


@pytest.mark.parametrize(
    ("writable", "pages"),
    [
        ((1, PAGE_BYTES), 0),
        ((0, PAGE_BYTES - 1), 0),
        ((1, 2 * PAGE_BYTES), 1),
        ((PAGE_BYTES - 1, PAGE_BYTES + 2), 1),
    ],
)
def test_only_whole_pages_are_discarded(writable: tuple[int, int], pages: int) -> None:
    driver = reporter()
    report(driver, writable)
    assert pages_with(driver, b"\0") == pages
    assert driver.board.balloon.counters.reported_pages == pages


def test_only_whole_host_pages_are_discarded() -> None:
    ram = AnonymousRam((0, 64 * MIB), host_page_pages=16)
    driver = reporter(ram=ram)
    report(driver, (8 * PAGE_BYTES, 32 * PAGE_BYTES))
    assert [list(runs) for runs in ram.discarded] == [[(16, 16)]]


@pytest.mark.conformance("5.5.4-3", "5.5.6.6.2-1", "5.5.6.7.2-2")
def test_poisoned_pages_keep_their_contents() -> None:
    """5.5.6.7.2: the device MUST NOT change a reported page to a value other than poison_val."""
    driver = reporter(poison=0xAAAA_AAAA)
    assert [used.length for used in report(driver, (2 * MIB, 2 * MIB))] == [0]
    assert pages_with(driver, b"\xa5") == 16 * MIB // PAGE_BYTES
    counters = driver.board.balloon.counters
    assert (counters.reported_pages, counters.reported_bytes) == (512, 0)


@pytest.mark.conformance("5.5.6.7.2-2")
def test_pages_poisoned_with_zero_are_discarded() -> None:
    driver = reporter(poison=0)
    report(driver, (0, PAGE_BYTES))
    assert pages_with(driver, b"\0") == 1


@pytest.mark.conformance("5.5.6.7.2-1")
def test_poison_val_is_ignored_without_its_feature() -> None:
    driver = reporter(accepted=ALL_FEATURES & ~features.PAGE_POISON, poison=0xAAAA_AAAA)
    report(driver, (0, PAGE_BYTES))
    assert pages_with(driver, b"\0") == 1


def test_a_reset_clears_poison_val() -> None:
    driver = reporter(poison=0xAAAA_AAAA)
    driver.start()
    report(driver, (0, PAGE_BYTES))
    assert pages_with(driver, b"\0") == 1


@pytest.mark.parametrize(("writable", "text"), [((), b"text"), (((0, PAGE_BYTES),), b"text")])
def test_a_report_with_readable_bytes_is_refused(
    writable: tuple[tuple[int, int], ...], text: bytes
) -> None:
    """Such as a command id of free page hinting from a driver with other queue numbers."""
    driver = reporter()
    assert [used.length for used in report(driver, *writable, text=text)] == [0]
    assert pages_with(driver, b"\0") == 0
    assert "balloon.bad_payload" in driver.board.tracer.names


@pytest.mark.conformance("5.5.2-3")
@pytest.mark.parametrize("number", [3, 4])
def test_both_numberings_work_without_free_page_hinting(number: int) -> None:
    """Linux counts the queues that exist, the list of 5.5.2 says 4 (see `Dialect.roles`)."""
    driver = BalloonDriver(STANDARD, offered=OFFERED & ~features.FREE_PAGE_HINT).start()
    driver.start(queues=[0, 1, 2, number])
    driver.memory.write(0, b"\xa5" * (16 * MIB))
    report(driver, (0, PAGE_BYTES), queue=number)
    assert pages_with(driver, b"\0") == 1


@pytest.mark.conformance("5.5.2-3")
def test_hints_are_not_taken_for_reports_with_the_lists_numbers() -> None:
    """Without STATS_VQ the list's free_page_vq has the number that Linux gives reporting_vq."""
    driver = BalloonDriver(STANDARD, offered=OFFERED & ~features.STATS_VQ).start()
    driver.start(queues=[0, 1, 3, 4])
    driver.memory.write(0, b"\xa5" * (16 * MIB))
    report(driver, (0, PAGE_BYTES), queue=3)
    assert pages_with(driver, b"\0") == 0
    assert driver.board.balloon.hinting.ignored == 1
    report(driver, (0, PAGE_BYTES), queue=4)
    assert pages_with(driver, b"\0") == 1
