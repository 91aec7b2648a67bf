# SPDX-License-Identifier: Apache-2.0
"""The statistics queue, used through registers: reports, and the buffer that carries them."""

import pytest

from devices.balloon import features
from devices.balloon.dialects import BITMAP, HYBRID, RANGES, STANDARD, Dialect
from devices.balloon.stat_tags import STATISTICS
from devices.balloon.stats import StatsReport
from devices.errors import BadPayload
from devices.testing.balloon.driver import DEFLATE, INFLATE, STATS
from devices.testing.balloon.requests import stats_payload
from devices.testing.balloon.stats import FREE, MAJOR_FAULTS, TOTAL, StatsGuest
from devices.testing.driver import FAILED, VERSION_1

EACH_DIALECT = pytest.mark.parametrize(
    "dialect", [STANDARD, BITMAP, HYBRID, RANGES], ids=lambda each: each.name
)


@pytest.fixture(params=[STANDARD, BITMAP, HYBRID, RANGES], ids=lambda each: each.name)
def guest(request: pytest.FixtureRequest) -> StatsGuest:
    return StatsGuest(request.param)


def received(guest: StatsGuest) -> list[StatsReport]:
    """Return a list that collects the reports of `guest`."""
    reports: list[StatsReport] = []
    guest.board.balloon.stats.report_received.add(reports.append)
    return reports


def test_the_first_report_is_unrequested_and_its_buffer_is_kept(guest: StatsGuest) -> None:
    reports = received(guest)
    guest.start()
    assert [report.values for report in reports] == [guest.statistics]
    assert reports[0].requests == 0
    assert guest.driver.queues[STATS].in_flight == 1
    assert guest.respond() is False


def test_a_request_returns_the_buffer(guest: StatsGuest) -> None:
    reports = received(guest)
    guest.start()
    interrupts = list(guest.board.msi.triggered)
    assert guest.board.balloon.request_stats()
    assert guest.board.msi.triggered == [*interrupts, STATS + 1]
    guest.statistics[FREE] -= 4096
    assert guest.respond()
    assert [report.requests for report in reports] == [0, 1]
    assert reports[1].values[FREE] == reports[0].values[FREE] - 4096


def test_only_one_request_is_open_at_a_time(guest: StatsGuest) -> None:
    balloon = guest.board.balloon
    assert not balloon.request_stats(), "no driver yet"
    guest.start()
    assert balloon.request_stats()
    assert not balloon.request_stats(), "the driver has the buffer"
    assert guest.respond()
    assert not guest.respond()
    assert balloon.request_stats()
    assert balloon.stats.requests == 2


def test_every_linux_statistic_has_its_name(guest: StatsGuest) -> None:
    reports = received(guest)
    guest.statistics = {tag: 1000 + tag for tag in range(16)}
    guest.start()
    names = [each.name for each in STATISTICS]
    assert reports[0].known == {name: 1000 + tag for tag, name in enumerate(names)}
    assert reports[0].unknown == {}


def test_absent_statistics_are_not_zero_and_unknown_ones_are_kept(guest: StatsGuest) -> None:
    reports = received(guest)
    guest.statistics = {MAJOR_FAULTS: 0, 16: 3, 0xFFFF: 2**64 - 1}
    guest.start()
    known = reports[0].known
    assert known["stat-major-faults"] == 0
    assert [name for name, value in known.items() if value is not None] == ["stat-major-faults"]
    assert len(known) == 16
    assert reports[0].unknown == {16: 3, 0xFFFF: 2**64 - 1}


def test_a_request_gets_a_report_measured_after_it(guest: StatsGuest) -> None:
    stats = guest.board.balloon.stats
    responses: list[StatsReport | BadPayload] = []
    guest.start()
    assert guest.board.balloon.request_stats()
    guest.statistics[FREE] = 1  # measured now, and on its way when the request is made
    stats.request(responses.append)
    assert not guest.board.balloon.request_stats()
    assert guest.respond()
    assert responses == []
    guest.statistics[FREE] = 2
    assert guest.respond(), "the buffer was returned at once"
    (report,) = responses
    assert isinstance(report, StatsReport)
    assert report.values[FREE] == 2
    assert not guest.respond(), "no request is outstanding"


def test_a_bad_report_completes_the_requests_that_it_responds_to(guest: StatsGuest) -> None:
    first: list[StatsReport | BadPayload] = []
    second: list[StatsReport | BadPayload] = []
    stats = guest.board.balloon.stats
    guest.start()
    stats.request(first.append)
    assert guest.board.balloon.request_stats()
    stats.request(second.append)
    assert guest.respond(bytes(3))
    assert [str(each) for each in first] == ["3 bytes are not an array of 10-byte statistics"]
    assert second == []
    assert guest.respond()
    assert isinstance(second[0], StatsReport)
    assert len(first) == len(second) == 1


def test_a_cancelled_request_is_not_completed(guest: StatsGuest) -> None:
    responses: list[StatsReport | BadPayload] = []
    guest.start()
    callback = responses.append
    guest.board.balloon.stats.request(callback)
    guest.board.balloon.stats.cancel(callback)
    assert not guest.board.balloon.stats.awaited
    assert guest.board.balloon.request_stats()
    assert guest.respond()
    assert responses == []


def test_the_last_value_of_a_repeated_tag_counts(guest: StatsGuest) -> None:
    reports = received(guest)
    guest.driver.start()
    guest.send(stats_payload([(FREE, 1), (TOTAL, 2), (FREE, 3)]))
    assert reports[0].values == {FREE: 3, TOTAL: 2}


@pytest.mark.parametrize("payload", [bytes(1), bytes(9), bytes(11), bytes(4091), bytes(40960)])
def test_a_bad_report_is_counted_and_can_be_requested_again(
    guest: StatsGuest, payload: bytes
) -> None:
    reports = received(guest)
    guest.driver.start()
    guest.send(payload)
    assert reports == []
    queue = guest.board.balloon.queues[STATS]
    assert queue.counters.bad_payloads == 1
    assert guest.board.tracer.names[-1] == "balloon.bad_payload"
    assert not guest.respond(), "returning the buffer would be a request"
    assert guest.board.balloon.request_stats()
    assert guest.respond(payload)
    assert guest.board.balloon.request_stats()
    assert guest.respond()
    assert queue.counters.bad_payloads == 2
    assert [report.requests for report in reports] == [2]


def test_repeated_bad_reports_cause_no_further_work(guest: StatsGuest) -> None:
    guest.driver.start()
    guest.send(bytes(3))
    for _ in range(100):
        guest.respond(bytes(3))
        guest.board.serve()
    assert guest.board.balloon.queues[STATS].counters.requests == 1


def test_a_second_buffer_is_returned_after_a_good_or_bad_report(guest: StatsGuest) -> None:
    for first in (None, bytes(3)):
        reports = received(guest)
        guest.driver.start()
        guest.send(first)
        for second in (None, bytes(3)):
            guest.send(second)
            assert [used.length for used in guest.driver.queues[STATS].take_used()] == [0]
        assert len(reports) == (first is None)
        assert guest.board.balloon.request_stats()


def test_a_reset_drops_the_kept_buffer(guest: StatsGuest) -> None:
    reports = received(guest)
    guest.start()
    guest.driver.reset()
    assert not guest.board.balloon.request_stats()
    guest.start()
    assert guest.driver.queues[STATS].take_used() == []
    assert guest.board.balloon.request_stats()
    assert guest.respond()
    assert len(reports) == 3


def test_a_stopped_device_sends_no_request(guest: StatsGuest) -> None:
    guest.start()
    guest.driver.add_status(FAILED)
    assert not guest.board.balloon.request_stats()
    assert guest.driver.queues[STATS].take_used() == []
    assert guest.board.balloon.stats.requests == 0


def test_without_bus_mastering_the_buffer_is_kept(guest: StatsGuest) -> None:
    """A request writes a used element, and a function must not write to memory then."""
    guest.start()
    guest.driver.write_pci(0x04, 2, 0b010)
    assert not guest.board.balloon.request_stats()
    assert guest.driver.queues[STATS].take_used() == []
    guest.driver.write_pci(0x04, 2, 0b110)
    assert guest.board.balloon.request_stats()
    assert guest.respond()


def test_no_request_is_sent_without_the_feature() -> None:
    guest = StatsGuest(STANDARD)
    guest.driver.start(features=VERSION_1, queues=[INFLATE, DEFLATE])
    assert not guest.board.balloon.request_stats()
    assert guest.board.balloon.stats.requests == 0


@EACH_DIALECT
def test_each_dialect_offers_statistics(dialect: Dialect) -> None:
    assert dialect.features.default & features.STATS_VQ
