# SPDX-License-Identifier: Apache-2.0
"""The misc queue with drivers that respond in time, late, twice or never."""

from __future__ import annotations

import struct

import pytest

from devices.balloon.dialects import BITMAP, HYBRID, RANGES, STANDARD, Dialect, Role
from devices.balloon.features import MISC_VQ
from devices.balloon.misc import MiscCommand, MiscResponse, RequestStatus
from devices.testing.balloon.driver import STATS, BalloonDriver
from devices.testing.balloon.misc import CONT, MISC, UNSUPPORTED, MiscDriver, MiscRequest
from devices.testing.driver import ALL_FEATURES
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns
from tests.devices.balloon.misc_host import MiscHost, pages

DIALECTS = [BITMAP, HYBRID, RANGES]


@pytest.fixture(params=DIALECTS, ids=lambda each: each.name)
def host(request: pytest.FixtureRequest) -> MiscHost:
    return MiscHost(dialect=request.param)


# Requests and valid responses.


def test_a_request_fills_the_buffer_and_interrupts(host: MiscHost) -> None:
    host.driver.offer_buffer()
    assert host.driver.take_requests() == []
    interrupts = len(host.board.msi.triggered)
    host.request()
    assert host.board.msi.triggered[interrupts:] == [1 + MISC]
    assert host.driver.take_requests() == [MiscRequest(0, 1)]
    assert host.responses == []


def test_a_response_holds_the_pages_named(host: MiscHost) -> None:
    request = host.send_request()
    (used,) = host.driver.respond(request, [5, 6, 7, 4000])
    assert used.length == 0
    assert host.responses == [MiscResponse(RequestStatus.COMPLETE, pages(5, 6, 7, 4000))]


def test_responses_discard_nothing(host: MiscHost) -> None:
    host.board.ram.memory.write(5 * PAGE_BYTES, b"kept")
    host.driver.respond(host.send_request(), [5])
    assert host.responses[0].pages == pages(5)
    assert host.board.ram.discarded == []
    assert host.board.balloon.counters.discarded_bytes == 0
    assert host.board.ram.memory.read(5 * PAGE_BYTES, 4) == b"kept"


def test_a_response_may_take_several_messages(host: MiscHost) -> None:
    request = host.send_request()
    for first in (0, 2000, 1000):  # in any order
        host.driver.respond(request, range(first, first + 100), flag=CONT)
        assert host.responses == []
    host.driver.respond(request, [50, 150])
    expected = pages(range(100), range(1000, 1100), range(2000, 2100), 150)
    assert host.responses == [MiscResponse(RequestStatus.COMPLETE, expected)]


@pytest.mark.parametrize(
    ("dialect", "message"),
    [
        (BITMAP, [12 << 16 | 1 << 32, 1, 0, 64, *[0] * 8]),
        (HYBRID, [1 << 8 | 1 << 16 | 16 << 32, 12 << 52 | 8 << 58, 0]),
    ],
)
def test_a_response_may_name_no_page(dialect: Dialect, message: list[int]) -> None:
    host = MiscHost(dialect=dialect)
    host.send_request()
    host.driver.send_message([struct.pack(f"<{len(message)}Q", *message)])
    host.driver.respond(host.send_request())  # a header alone
    assert host.responses == [MiscResponse(RequestStatus.COMPLETE, PageRuns())] * 2
    assert host.bad_payloads == 0


def test_a_response_may_name_larger_pages() -> None:
    host = MiscHost()
    host.driver.respond(host.send_request(), [1], page_shift=16, start_pfn=0)
    assert host.responses[0].pages == PageRuns([(16, 16)])


def test_each_request_has_a_new_id(host: MiscHost) -> None:
    for expected in (1, 2, 3):
        request = host.send_request()
        assert request.id == expected
        host.driver.respond(request, [expected])
    assert [each.pages for each in host.responses] == [pages(1), pages(2), pages(3)]


def test_a_request_waits_for_a_buffer(host: MiscHost) -> None:
    host.request()
    assert host.driver.take_requests() == []
    host.driver.offer_buffer()
    (request,) = host.driver.take_requests()
    host.driver.respond(request, [9])
    assert host.responses == [MiscResponse(RequestStatus.COMPLETE, pages(9))]


def test_a_larger_buffer_is_used_from_its_start(host: MiscHost) -> None:
    host.driver.offer_buffer(10, 90)
    host.request()
    assert host.driver.take_requests() == [MiscRequest(0, 1)]


@pytest.mark.parametrize("command", [MiscCommand.DROP_CACHE, MiscCommand.SYNC])
def test_a_header_alone_completes_a_command(host: MiscHost, command: MiscCommand) -> None:
    host.driver.respond(host.send_request(command))
    assert host.responses == [MiscResponse(RequestStatus.COMPLETE, PageRuns())]


@pytest.mark.parametrize("command", list(MiscCommand))
def test_a_driver_may_report_a_command_as_unsupported(host: MiscHost, command: MiscCommand) -> None:
    host.driver.respond(host.send_request(command), flag=UNSUPPORTED)
    assert host.responses == [MiscResponse(RequestStatus.UNSUPPORTED, PageRuns())]
    assert host.bad_payloads == 0


# Responses that are late, early, duplicate or missing.


def test_the_response_to_a_cancelled_request_is_ignored(host: MiscHost) -> None:
    old = host.send_request()
    assert host.misc.cancel() is True
    new = host.send_request()
    host.driver.respond(old, [1], flag=CONT)
    host.driver.respond(old, [2])
    assert host.responses == []
    assert host.misc.late_messages == 2
    host.driver.respond(new, [3])
    assert host.responses == [MiscResponse(RequestStatus.COMPLETE, pages(3))]
    assert host.bad_payloads == 0


def test_a_request_cancelled_early_is_never_sent(host: MiscHost) -> None:
    host.request()
    assert host.misc.cancel() is False
    host.driver.offer_buffer()
    assert host.driver.take_requests() == []
    assert host.misc.cancel() is False, "no request is outstanding"
    host.request()
    assert host.driver.take_requests() == [MiscRequest(0, 1)]


def test_a_second_response_is_late(host: MiscHost) -> None:
    request = host.send_request()
    for pfn in (1, 2):
        assert [used.length for used in host.driver.respond(request, [pfn])] == [0]
    assert host.responses == [MiscResponse(RequestStatus.COMPLETE, pages(1))]
    assert host.misc.late_messages == 1


@pytest.mark.parametrize("req_id", [0, 1, 2, 0xFFFF])
def test_a_response_without_a_request_is_refused(host: MiscHost, req_id: int) -> None:
    host.driver.respond(None, [1], req_id=req_id)
    assert host.why == f"no request has had the id {req_id}"
    host.request()  # waits for the buffer: the driver cannot know its id
    host.driver.respond(None, [1], req_id=1)
    assert host.bad_payloads == 2
    host.driver.offer_buffer()
    (request,) = host.driver.take_requests()
    host.driver.respond(request, [7])
    assert host.responses == [MiscResponse(RequestStatus.COMPLETE, pages(7))]


def test_a_driver_may_offer_its_buffer_before_it_responds(host: MiscHost) -> None:
    request = host.send_request()
    host.driver.offer_buffer()
    assert host.driver.take_requests() == [], "one request at a time"
    host.driver.respond(request, [4])
    assert host.responses == [MiscResponse(RequestStatus.COMPLETE, pages(4))]
    host.request()
    assert len(host.driver.take_requests()) == 1


# Resets.


def test_a_reset_ends_the_request(host: MiscHost) -> None:
    host.send_request()
    host.driver.driver.reset()
    assert host.responses == [MiscResponse(RequestStatus.RESET, PageRuns())]


def test_a_reset_ends_a_waiting_request(host: MiscHost) -> None:
    host.request()
    host.driver.driver.reset()
    assert host.responses == [MiscResponse(RequestStatus.RESET, PageRuns())]


def test_request_ids_continue_after_a_reset(host: MiscHost) -> None:
    old = host.send_request()
    host.driver.offer_buffer()
    driver = MiscDriver(host.driver.driver.start())
    host.driver = driver
    new = host.send_request()
    assert (old.id, new.id) == (1, 2)
    driver.respond(old, [1])
    assert host.misc.late_messages == 1
    driver.respond(new, [2])
    assert [each.status for each in host.responses] == [
        RequestStatus.RESET,
        RequestStatus.COMPLETE,
    ]


def test_a_reset_drops_the_buffer(host: MiscHost) -> None:
    host.driver.offer_buffer()
    driver = host.driver.driver.start()
    host.request()
    assert driver.queues[MISC].take_used() == []


# Negotiation.


def test_has_live_returns_whether_the_driver_serves_requests(host: MiscHost) -> None:
    balloon = host.board.balloon
    assert balloon.has_live(Role.MISC)
    host.driver.driver.reset()
    assert not balloon.has_live(Role.MISC)
    host.driver.driver.start(features=ALL_FEATURES & ~MISC_VQ)
    assert not balloon.has_live(Role.MISC)
    assert balloon.has_live(Role.INFLATE)
    assert not BalloonDriver(STANDARD).start().board.balloon.has_live(Role.MISC)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda each: each.name)
def test_the_misc_queue_follows_the_queues_that_exist(dialect: Dialect) -> None:
    """A driver without STATS_VQ numbers its misc queue 2; no driver of the dialects is such."""
    driver = BalloonDriver(dialect).start(features=ALL_FEATURES & ~(1 << 1))
    misc = driver.board.balloon.misc
    driver.queues[STATS].add([], [16])
    driver.notify(STATS)
    driver.board.serve()
    misc.request(MiscCommand.SYNC, lambda response: None)
    (used,) = driver.queues[STATS].take_used()
    assert struct.unpack("<H6xQ", used.data) == (2, 1)
