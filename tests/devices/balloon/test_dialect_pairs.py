# SPDX-License-Identifier: Apache-2.0
"""Each driver on a device of each dialect: nothing is discarded that the driver did not give.

A driver is modelled by the features that it accepts and by its requests: the stock driver of Linux,
the three of guest.img, and those that were posted as versions 5 and 6. A careless one ignores that
the device refused its features, and uses its queues nevertheless.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.balloon import features
from devices.balloon.dialects import BITMAP, HYBRID, NAMES, RANGES, STANDARD, Dialect, by_name
from devices.testing.balloon.driver import DEFLATE, INFLATE, BalloonBoard
from devices.testing.balloon.requests import bitmap_request, page_runs, pfn_array, record_request
from devices.testing.driver import RINGS_GPA, VirtioDriver
from devices.virtio.features import TRANSPORT
from devices.virtio.status import Status
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns
from tests.devices.balloon.posted_encoders import hybrid_messages, range_messages

BITS_0_TO_2 = features.MUST_TELL_HOST | features.STATS_VQ | features.DEFLATE_ON_OOM
BIT_3, BIT_4, BIT_5 = 1 << 3, 1 << 4, 1 << 5
Encoder = Callable[[list[int]], list[list[bytes]]]


class DriverModel(NamedTuple):
    name: str
    known: int
    """Features that it knows, all of which it accepts if they are offered."""
    needed: int
    """Features that it accepts and uses only together; without them it sends PFN arrays."""
    encode: Encoder

    def accepted(self, offered: int) -> int:
        if offered & self.needed != self.needed:
            return offered & (BITS_0_TO_2 | TRANSPORT)
        return offered & (self.known | TRANSPORT)

    def requests(self, offered: int, pfns: list[int]) -> list[list[bytes]]:
        speaks = offered & self.needed == self.needed
        return (self.encode if speaks else arrays)(pfns)


def arrays(pfns: list[int]) -> list[list[bytes]]:
    return [[pfn_array(pfns[i : i + 256])] for i in range(0, len(pfns), 256)]


def hybrid(pfns: list[int]) -> list[list[bytes]]:
    return [record_request(words) for words in hybrid_messages(pfns)]


def ranges(pfns: list[int]) -> list[list[bytes]]:
    """Return messages as version 6 sends them, without its fault at 4096 pages."""
    return [
        record_request(words)
        for start, count in page_runs(pfns)
        for words in range_messages(range(start, start + count))
    ]


FIVE = BITS_0_TO_2 | BIT_3 | BIT_4
DRIVERS = [
    DriverModel("stock", FIVE | BIT_5, 0, arrays),
    DriverModel("bitmap", FIVE, BIT_3, lambda pfns: [bitmap_request(pfns)]),
    DriverModel("hybrid", FIVE | features.HYBRID_RECORDS, BIT_3 | features.HYBRID_RECORDS, hybrid),
    DriverModel("ranges", FIVE | features.RANGE_RECORDS, BIT_3 | features.RANGE_RECORDS, ranges),
    DriverModel("posted hybrid", FIVE, BIT_3, hybrid),
    DriverModel("posted ranges", FIVE, BIT_3, ranges),
]
UNDERSTOOD = {
    ("stock", "standard"),
    ("bitmap", "standard"),
    ("hybrid", "standard"),
    ("ranges", "standard"),
    ("posted hybrid", "standard"),
    ("posted ranges", "standard"),
    ("bitmap", "bitmap"),
    ("hybrid", "hybrid"),
    ("ranges", "ranges"),
}
REFUSED_BY_FEATURES = {
    (driver.name, device)
    for driver in DRIVERS
    for device in ("hybrid", "ranges")
    if driver.name != device
} | {("hybrid", "bitmap"), ("ranges", "bitmap")}
"""All other pairs: the payload is refused."""


def negotiate(driver: VirtioDriver, accepted: int) -> None:
    """Accept features, offered or not, up to FEATURES_OK, which the device may refuse."""
    driver.reset()
    driver.add_status(Status.ACKNOWLEDGE)
    driver.add_status(Status.DRIVER)
    driver.write_driver_features(accepted)
    driver.add_status(Status.FEATURES_OK)


class Pair:
    """A driver on a new device with its default features, and what it has given."""

    def __init__(self, model: DriverModel, dialect: Dialect, offered: int | None = None) -> None:
        self.model = model
        self.board = BalloonBoard(dialect, offered=offered)
        self.driver = VirtioDriver(self.board)
        self.driver.probe()
        self.offered = self.board.balloon.offered
        negotiate(self.driver, model.accepted(self.offered))
        for index in self.driver.existing_queues():
            self.driver.set_up_queue(index)
        self.driver.add_status(Status.DRIVER_OK)

    def give(self, pfns: list[int], queue: int = INFLATE) -> None:
        """Send the requests, whatever became of the negotiation."""
        if queue not in self.driver.queues:
            self.driver.set_up_queue(queue)
        for request in self.model.requests(self.offered, pfns):
            self.driver.queues[queue].add(request)
            self.driver.notify(queue)
            self.board.serve()

    @property
    def runs(self) -> bool:
        return self.board.balloon.running

    @property
    def discarded(self) -> PageRuns:
        return self.board.ram.discarded_pages


ALL_PAIRS = [(driver, device) for driver in DRIVERS for device in NAMES]
EACH_PAIR = pytest.mark.parametrize(
    ("driver", "device"), ALL_PAIRS, ids=[f"{d.name} on {device}" for d, device in ALL_PAIRS]
)
FREE = [*range(300, 460), *range(512, 1536), 1600, 1602, 4097]


@EACH_PAIR
def test_a_driver_that_is_not_understood_has_nothing_discarded(
    driver: DriverModel, device: str
) -> None:
    pair = Pair(driver, by_name(device))
    pair.give(FREE)
    names = (driver.name, device)
    if names in UNDERSTOOD:
        assert pair.discarded == PageRuns(page_runs(FREE))
    else:
        assert not pair.board.ram.discarded
    assert pair.runs == (names not in REFUSED_BY_FEATURES)


@EACH_PAIR
def test_a_driver_without_features_ok_is_never_served(driver: DriverModel, device: str) -> None:
    """It sets DRIVER_OK nevertheless, and notifies its queues."""
    pair = Pair(driver, by_name(device))
    refused = (driver.name, device) in REFUSED_BY_FEATURES
    assert bool(pair.driver.status & Status.FEATURES_OK) != refused
    pair.give(FREE)
    pair.give(FREE, DEFLATE)
    counters = pair.board.balloon.counters
    assert bool(counters.inflate.requests) != refused
    assert bool(counters.deflate.requests) != refused


FREE_PAGES = RINGS_GPA // PAGE_BYTES
"""The pages below the rings."""
pages = st.lists(st.integers(0, FREE_PAGES - 1), min_size=1, max_size=400, unique=True)
spans = st.lists(
    st.tuples(st.integers(0, FREE_PAGES - 700), st.integers(1, 700)), min_size=1, max_size=6
).map(lambda drawn: sorted({p for start, n in drawn for p in range(start, start + n)})[:4095])


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(ALL_PAIRS), pages.map(sorted) | spans)
def test_only_given_pages_are_discarded_for_any_pair(
    pair_of: tuple[DriverModel, str], pfns: list[int]
) -> None:
    driver, device = pair_of
    pair = Pair(driver, by_name(device))
    pair.give(pfns)
    assert not pair.discarded.subtract(PageRuns(page_runs(pfns)))


@pytest.mark.parametrize("driver", DRIVERS[1:4], ids=lambda driver: driver.name)
@settings(deadline=None, max_examples=40)
@given(pfns=pages.map(sorted) | spans)
def test_drivers_of_the_image_are_safe_beside_free_page_hints(
    driver: DriverModel, pfns: list[int]
) -> None:
    """A standard device that offers FREE_PAGE_HINT, bit 3."""
    pair = Pair(driver, STANDARD, STANDARD.features.known)
    pair.give(pfns)
    assert not pair.discarded.subtract(PageRuns(page_runs(pfns)))
    if driver.name != "bitmap":
        assert pair.discarded == PageRuns(page_runs(pfns)), "it sends arrays"


@pytest.mark.parametrize("dialect", [BITMAP, HYBRID, RANGES], ids=lambda each: each.name)
@pytest.mark.parametrize("bit", [features.HYBRID_RECORDS, features.RANGE_RECORDS])
def test_a_bit_of_another_dialect_is_refused_if_it_is_accepted(dialect: Dialect, bit: int) -> None:
    board = BalloonBoard(dialect)
    driver = VirtioDriver(board)
    driver.probe()
    negotiate(driver, board.balloon.offered | bit)
    owned = bool(board.balloon.offered & bit)
    assert bool(driver.status & Status.FEATURES_OK) == owned


@pytest.mark.parametrize("dialect", [HYBRID, RANGES], ids=lambda each: each.name)
@pytest.mark.parametrize("missing", [0, 1], ids=["the bit of records", "bit 3"])
def test_each_required_bit_is_required(dialect: Dialect, missing: int) -> None:
    required = dialect.features.required
    bit = BIT_3 if missing else required & ~BIT_3
    board = BalloonBoard(dialect)
    driver = VirtioDriver(board)
    driver.probe()
    negotiate(driver, board.balloon.offered & ~bit)
    assert not driver.status & Status.FEATURES_OK
    name, fields = board.tracer.events[-1]
    assert name == "balloon.features_refused"
    assert "was not accepted" in str(fields["why"])
