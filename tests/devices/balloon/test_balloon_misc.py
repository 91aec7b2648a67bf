# SPDX-License-Identifier: Apache-2.0
"""The misc queue with drivers that respond well, late, twice, wrongly or never."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

import pytest

from devices.balloon.dialects import BITMAP, STANDARD, Role
from devices.balloon.features import MISC_VQ
from devices.balloon.misc import MAX_MESSAGES, Command, MiscResponse, RequestStatus
from devices.testing.balloon.driver import STATS, BalloonDriver
from devices.testing.balloon.misc import CONT, DONE, MISC, UNSUPPORTED, MiscDriver, MiscRequest
from devices.testing.driver import ALL_FEATURES
from devices.testing.ram import AnonymousRam
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns

RAM_PAGES = 64 * MIB // PAGE_BYTES


class Host:
    """A started balloon, the driver of its misc queue, and the responses received."""

    def __init__(self, ram: AnonymousRam | None = None) -> None:
        self.driver = MiscDriver(BalloonDriver(BITMAP, ram=ram).start())
        self.board = self.driver.driver.board
        self.misc = self.board.balloon.misc
        self.responses: list[MiscResponse] = []

    def request(self, command: Command = Command.GET_UNUSED_PAGES) -> None:
        self.misc.request(command, self.responses.append)

    def send_request(self, command: Command = Command.GET_UNUSED_PAGES) -> MiscRequest:
        """Send a request to a driver that has offered a buffer; return the request it read."""
        self.driver.offer_buffer()
        self.request(command)
        (request,) = self.driver.take_requests()
        assert request.cmd == command
        return request

    @property
    def bad_payloads(self) -> int:
        return self.board.balloon.queues[MISC].counters.bad_payloads

    @property
    def why(self) -> str:
        """Reason for which the last bad payload was refused."""
        name, fields = next(e for e in reversed(self.board.tracer.events) if "why" in e[1])
        assert name == "balloon.bad_payload"
        return str(fields["why"])


@pytest.fixture
def host() -> Host:
    return Host()


def pages(*pfns: int | Iterable[int]) -> PageRuns:
    flat = [p for each in pfns for p in ([each] if isinstance(each, int) else each)]
    return PageRuns((pfn, 1) for pfn in flat)


# Requests and valid responses.


def test_a_request_fills_the_buffer_and_interrupts(host: Host) -> None:
    host.driver.offer_buffer()
    assert host.driver.take_requests() == []
    interrupts = len(host.board.msi.triggered)
    host.request()
    assert host.board.msi.triggered[interrupts:] == [1 + MISC]
    assert host.driver.take_requests() == [MiscRequest(0, 1)]
    assert host.responses == []


def test_a_response_holds_the_pages_named(host: Host) -> None:
    request = host.send_request()
    (used,) = host.driver.respond(request, [5, 6, 7, 4000])
    assert used.length == 0
    assert host.responses == [MiscResponse(RequestStatus.COMPLETE, pages(5, 6, 7, 4000))]


def test_responses_discard_nothing(host: Host) -> None:
    host.board.ram.memory.write(5 * PAGE_BYTES, b"kept")
    host.driver.respond(host.send_request(), [5])
    assert host.responses[0].pages == pages(5)
    assert host.board.ram.discarded == []
    assert host.board.balloon.counters.discarded_bytes == 0
    assert host.board.ram.memory.read(5 * PAGE_BYTES, 4) == b"kept"


def test_a_response_may_take_several_messages(host: Host) -> None:
    request = host.send_request()
    for first in (0, 2000, 1000):  # in any order
        host.driver.respond(request, range(first, first + 100), flag=CONT)
        assert host.responses == []
    host.driver.respond(request, [50, 150])
    expected = pages(range(100), range(1000, 1100), range(2000, 2100), 150)
    assert host.responses == [MiscResponse(RequestStatus.COMPLETE, expected)]


def test_a_response_may_name_no_page(host: Host) -> None:
    host.driver.respond(host.send_request(), bmap_len=64, supplied_bytes=64, start_pfn=0)
    host.driver.respond(host.send_request())  # a header alone
    assert host.responses == [MiscResponse(RequestStatus.COMPLETE, PageRuns())] * 2
    assert host.bad_payloads == 0


def test_a_response_may_name_larger_pages(host: Host) -> None:
    host.driver.respond(host.send_request(), [1], page_shift=16, start_pfn=0)
    assert host.responses[0].pages == PageRuns([(16, 16)])


def test_each_request_has_a_new_id(host: Host) -> None:
    for expected in (1, 2, 3):
        request = host.send_request()
        assert request.id == expected
        host.driver.respond(request, [expected])
    assert [each.pages for each in host.responses] == [pages(1), pages(2), pages(3)]


def test_a_request_waits_for_a_buffer(host: Host) -> None:
    host.request()
    assert host.driver.take_requests() == []
    host.driver.offer_buffer()
    (request,) = host.driver.take_requests()
    host.driver.respond(request, [9])
    assert host.responses == [MiscResponse(RequestStatus.COMPLETE, pages(9))]


def test_a_larger_buffer_is_used_from_its_start(host: Host) -> None:
    host.driver.offer_buffer(10, 90)
    host.request()
    assert host.driver.take_requests() == [MiscRequest(0, 1)]


@pytest.mark.parametrize("command", [Command.DROP_CACHE, Command.SYNC])
def test_a_header_alone_completes_a_command(host: Host, command: Command) -> None:
    host.driver.respond(host.send_request(command))
    assert host.responses == [MiscResponse(RequestStatus.COMPLETE, PageRuns())]


@pytest.mark.parametrize("command", list(Command))
def test_a_driver_may_report_a_command_as_unsupported(host: Host, command: Command) -> None:
    host.driver.respond(host.send_request(command), flag=UNSUPPORTED)
    assert host.responses == [MiscResponse(RequestStatus.UNSUPPORTED, PageRuns())]
    assert host.bad_payloads == 0


# Responses that are late, early, duplicate or missing.


def test_the_response_to_a_withdrawn_request_is_ignored(host: Host) -> None:
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


def test_a_request_withdrawn_early_is_never_sent(host: Host) -> None:
    host.request()
    assert host.misc.cancel() is False
    host.driver.offer_buffer()
    assert host.driver.take_requests() == []
    assert host.misc.cancel() is False, "nothing is open"
    host.request()
    assert host.driver.take_requests() == [MiscRequest(0, 1)]


def test_a_second_response_is_late(host: Host) -> None:
    request = host.send_request()
    for pfn in (1, 2):
        assert [used.length for used in host.driver.respond(request, [pfn])] == [0]
    assert host.responses == [MiscResponse(RequestStatus.COMPLETE, pages(1))]
    assert host.misc.late_messages == 1


@pytest.mark.parametrize("req_id", [0, 1, 2, 1 << 63, (1 << 64) - 1])
def test_a_response_without_a_request_is_refused(host: Host, req_id: int) -> None:
    host.driver.respond(None, [1], req_id=req_id)
    assert host.why == f"no request has had the id {req_id}"
    host.request()  # waits for the buffer: the driver cannot know its id
    host.driver.respond(None, [1], req_id=1)
    assert host.bad_payloads == 2
    host.driver.offer_buffer()
    (request,) = host.driver.take_requests()
    host.driver.respond(request, [7])
    assert host.responses == [MiscResponse(RequestStatus.COMPLETE, pages(7))]


def test_a_driver_may_offer_its_buffer_before_it_responds(host: Host) -> None:
    request = host.send_request()
    host.driver.offer_buffer()
    assert host.driver.take_requests() == [], "one request at a time"
    host.driver.respond(request, [4])
    assert host.responses == [MiscResponse(RequestStatus.COMPLETE, pages(4))]
    host.request()
    assert len(host.driver.take_requests()) == 1


# Unsuitable buffers for requests.


def test_a_second_buffer_is_returned_empty(host: Host) -> None:
    host.driver.offer_buffer()
    host.driver.offer_buffer()
    assert [used.length for used in host.driver.used] == [0]
    assert host.why == "a request buffer is already in flight"
    host.request()
    assert host.driver.take_requests() == [MiscRequest(0, 1)]


@pytest.mark.parametrize("sizes", [(15,), (1,), (7, 8)])
def test_a_buffer_too_small_for_a_request_is_refused(host: Host, sizes: tuple[int, ...]) -> None:
    host.request()
    host.driver.offer_buffer(*sizes)
    assert [used.length for used in host.driver.used] == [0]
    assert "too few for a request" in host.why
    host.driver.offer_buffer()
    assert host.driver.take_requests() == [MiscRequest(0, 1)], "the request still waits"


def test_a_buffer_both_readable_and_writable_is_refused(host: Host) -> None:
    request = host.send_request()
    host.driver.offer_buffer(readable=[bytes(32)])
    assert [used.length for used in host.driver.used] == [0]
    assert "both a message and a request buffer" in host.why
    host.driver.respond(request, [1])
    assert host.responses == [MiscResponse(RequestStatus.COMPLETE, pages(1))]


# Malformed messages invalidate the response.

WRONG: dict[str, dict[str, int]] = {
    "response of command 1 to command 0": {"cmd": 1},
    "no request has had the id 2": {"req_id": 2},
    "unknown flag 0x3": {"flag": 3},
    "unknown flag 0xffff": {"flag": 0xFFFF},
    "page_shift 11 is not a page size": {"page_shift": 11},
    "page_shift 65535 is not a page size": {"page_shift": 0xFFFF},
    "start_pfn 0x1 is not a multiple of 64": {"start_pfn": 1},
    "bmap_len 7 is not a positive multiple of 8": {"bmap_len": 7},
    "bmap_len 16 but only 8 bytes supplied": {"bmap_len": 16},
    f"bmap_len {1 << 63} but only 8 bytes supplied": {"bmap_len": 1 << 63},
    "is beyond any address": {"start_pfn": 1 << 63},
    "1 of 1 pages are not RAM": {"start_pfn": RAM_PAGES},
}


@pytest.mark.parametrize("why", WRONG)
@pytest.mark.parametrize("messages_before", [0, 1])
def test_a_bad_message_invalidates_the_response(host: Host, why: str, messages_before: int) -> None:
    request = host.send_request()
    for _ in range(messages_before):
        host.driver.respond(request, [10], flag=CONT)
    header = WRONG[why]
    (used,) = host.driver.respond(request, [header.get("start_pfn", 0) + 3], **header)
    assert used.length == 0
    (response,) = host.responses
    assert response.status is RequestStatus.INVALID_RESPONSE
    assert response.pages == PageRuns()
    assert why in response.why == host.why
    # Further messages about it are late, and the next request is another one.
    host.driver.respond(request, [11])
    assert host.misc.late_messages == 1
    host.driver.respond(host.send_request(), [12])
    assert host.responses[1:] == [MiscResponse(RequestStatus.COMPLETE, pages(12))]
    assert host.bad_payloads == 1


@pytest.mark.parametrize("message", [[], [b"x"], [bytes(31)]])
def test_a_truncated_message_invalidates_the_response(host: Host, message: list[bytes]) -> None:
    host.driver.send_message(message or [b""])
    assert host.bad_payloads == 1, "and nothing was open"
    host.send_request()
    host.driver.send_message(message or [b""])
    assert host.responses[0].status is RequestStatus.INVALID_RESPONSE


def test_an_overlong_message_invalidates_the_response(host: Host) -> None:
    host.driver.send_message([bytes(1 << 20), bytes(1 << 20)])
    assert host.responses == [], "nothing was open"
    host.send_request()
    (used,) = host.driver.send_message([bytes(1 << 20), bytes(1 << 20)])
    assert used.length == 0
    assert host.responses == [
        MiscResponse(
            RequestStatus.INVALID_RESPONSE, PageRuns(), f"request of {2 << 20} bytes is too long"
        )
    ]


def test_a_page_outside_ram_invalidates_the_response() -> None:
    host = Host(AnonymousRam((0, 16 * MIB), (32 * MIB, 32 * MIB)))
    hole = 16 * MIB // PAGE_BYTES
    host.driver.respond(host.send_request(), [hole - 1, 32 * MIB // PAGE_BYTES])
    assert host.responses[-1].pages.pages == 2, "a response may span the hole"
    host.driver.respond(host.send_request(), range(hole - 5, hole + 1))
    assert host.responses[-1] == MiscResponse(
        RequestStatus.INVALID_RESPONSE, PageRuns(), "1 of 6 pages are not RAM"
    )


@pytest.mark.parametrize(
    "header", [{"flag": CONT}, {"flag": 3}, {"bmap_len": 8, "supplied_bytes": 8}]
)
@pytest.mark.parametrize("command", [Command.DROP_CACHE, Command.SYNC])
def test_a_malformed_response_to_a_command_is_invalid(
    host: Host, command: Command, header: dict[str, Any]
) -> None:
    host.driver.respond(host.send_request(command), **header)
    assert host.responses[0].status is RequestStatus.INVALID_RESPONSE


def test_an_endless_response_is_invalid(host: Host) -> None:
    request = host.send_request()
    for i in range(MAX_MESSAGES):
        host.driver.respond(request, [i % 100], flag=CONT)
    assert host.responses == []
    host.driver.respond(request, [0], flag=CONT)
    assert host.responses == [
        MiscResponse(
            RequestStatus.INVALID_RESPONSE,
            PageRuns(),
            f"more than {MAX_MESSAGES} messages in one response",
        )
    ]
    host.driver.respond(request, [0], flag=DONE)
    assert host.misc.late_messages == 1


def test_the_memory_for_a_response_is_bounded_by_ram(host: Host) -> None:
    """Name every other page in the longest messages, shifted by one each time."""
    request = host.send_request()
    even, odd = bytes([0x55]) * (RAM_PAGES // 8), bytes([0xAA]) * (RAM_PAGES // 8)
    header = struct.pack("<HHHHQQQ", 0, 12, CONT, 0, request.id, 0, RAM_PAGES // 8)
    for bits in (even, odd, even):
        host.driver.send_message([header, bits + bytes((1 << 20) - len(bits))])
    host.driver.respond(request)
    assert host.responses == [MiscResponse(RequestStatus.COMPLETE, PageRuns([(0, RAM_PAGES)]))]


# Resets.


def test_a_reset_ends_the_request(host: Host) -> None:
    host.send_request()
    host.driver.driver.reset()
    assert host.responses == [MiscResponse(RequestStatus.RESET, PageRuns())]


def test_a_reset_ends_a_waiting_request(host: Host) -> None:
    host.request()
    host.driver.driver.reset()
    assert host.responses == [MiscResponse(RequestStatus.RESET, PageRuns())]


def test_request_ids_continue_after_a_reset(host: Host) -> None:
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


def test_a_reset_drops_the_buffer(host: Host) -> None:
    host.driver.offer_buffer()
    driver = host.driver.driver.start()
    host.request()
    assert driver.queues[MISC].take_used() == []


# Negotiation.


def test_has_live_tells_whether_the_driver_takes_requests(host: Host) -> None:
    balloon = host.board.balloon
    assert balloon.has_live(Role.MISC)
    host.driver.driver.reset()
    assert not balloon.has_live(Role.MISC)
    host.driver.driver.start(features=ALL_FEATURES & ~MISC_VQ)
    assert not balloon.has_live(Role.MISC)
    assert balloon.has_live(Role.INFLATE)
    assert not BalloonDriver(STANDARD).start().board.balloon.has_live(Role.MISC)


def test_the_misc_queue_follows_the_queues_that_exist() -> None:
    """A driver without STATS_VQ numbers its misc queue 2; no driver of the dialect is such."""
    driver = BalloonDriver(BITMAP).start(features=ALL_FEATURES & ~(1 << 1))
    misc = driver.board.balloon.misc
    driver.queues[STATS].add([], [16])
    driver.notify(STATS)
    driver.board.serve()
    misc.request(Command.SYNC, lambda response: None)
    (used,) = driver.queues[STATS].take_used()
    assert struct.unpack("<H6xQ", used.data) == (2, 1)
