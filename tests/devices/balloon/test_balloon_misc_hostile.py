# SPDX-License-Identifier: Apache-2.0
"""The misc queue with drivers that send malformed messages or unsuitable buffers."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from devices.balloon.misc import MAX_MESSAGES, MiscCommand, MiscResponse, RequestStatus
from devices.testing.balloon.misc import CONT, DONE, MiscRequest
from devices.testing.ram import AnonymousRam
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns
from tests.devices.balloon.misc_host import RAM_PAGES, MiscHost, pages


@pytest.fixture
def host() -> MiscHost:
    return MiscHost()


# Unsuitable buffers for requests.


def test_a_second_buffer_is_returned_empty(host: MiscHost) -> None:
    host.driver.offer_buffer()
    host.driver.offer_buffer()
    assert [used.length for used in host.driver.used] == [0]
    assert host.why == "a request buffer is already in flight"
    host.request()
    assert host.driver.take_requests() == [MiscRequest(0, 1)]


@pytest.mark.parametrize("sizes", [(15,), (1,), (7, 8)])
def test_a_buffer_too_small_for_a_request_is_refused(
    host: MiscHost, sizes: tuple[int, ...]
) -> None:
    host.request()
    host.driver.offer_buffer(*sizes)
    assert [used.length for used in host.driver.used] == [0]
    assert "too few for a request" in host.why
    host.driver.offer_buffer()
    assert host.driver.take_requests() == [MiscRequest(0, 1)], "the request still waits"


def test_a_buffer_both_readable_and_writable_is_refused(host: MiscHost) -> None:
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
    f"no request has had the id {(1 << 64) - 1}": {"req_id": (1 << 64) - 1},
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
def test_a_bad_message_invalidates_the_response(
    host: MiscHost, why: str, messages_before: int
) -> None:
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
    # Further messages with its id are late; the next request has another id.
    host.driver.respond(request, [11])
    assert host.misc.late_messages == 1
    host.driver.respond(host.send_request(), [12])
    assert host.responses[1:] == [MiscResponse(RequestStatus.COMPLETE, pages(12))]
    assert host.bad_payloads == 1


@pytest.mark.parametrize("message", [[], [b"x"], [bytes(31)]])
def test_a_truncated_message_invalidates_the_response(host: MiscHost, message: list[bytes]) -> None:
    host.driver.send_message(message or [b""])
    assert host.bad_payloads == 1, "and no request was outstanding"
    host.send_request()
    host.driver.send_message(message or [b""])
    assert host.responses[0].status is RequestStatus.INVALID_RESPONSE


def test_an_overlong_message_invalidates_the_response(host: MiscHost) -> None:
    host.driver.send_message([bytes(1 << 20), bytes(1 << 20)])
    assert host.responses == [], "no request was outstanding"
    host.send_request()
    (used,) = host.driver.send_message([bytes(1 << 20), bytes(1 << 20)])
    assert used.length == 0
    assert host.responses == [
        MiscResponse(
            RequestStatus.INVALID_RESPONSE, PageRuns(), f"request of {2 << 20} bytes is too long"
        )
    ]


def test_a_page_outside_ram_invalidates_the_response() -> None:
    host = MiscHost(AnonymousRam((0, 16 * MIB), (32 * MIB, 32 * MIB)))
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
@pytest.mark.parametrize("command", [MiscCommand.DROP_CACHE, MiscCommand.SYNC])
def test_a_malformed_response_to_a_command_is_invalid(
    host: MiscHost, command: MiscCommand, header: dict[str, Any]
) -> None:
    host.driver.respond(host.send_request(command), **header)
    assert host.responses[0].status is RequestStatus.INVALID_RESPONSE


def test_an_endless_response_is_invalid(host: MiscHost) -> None:
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


def test_the_memory_for_a_response_is_bounded_by_ram(host: MiscHost) -> None:
    """Name every other page in the longest messages, shifted by one each time."""
    request = host.send_request()
    even, odd = bytes([0x55]) * (RAM_PAGES // 8), bytes([0xAA]) * (RAM_PAGES // 8)
    header = struct.pack("<HHHHQQQ", 0, 12, CONT, 0, request.id, 0, RAM_PAGES // 8)
    for bits in (even, odd, even):
        host.driver.send_message([header, bits + bytes((1 << 20) - len(bits))])
    host.driver.respond(request)
    assert host.responses == [MiscResponse(RequestStatus.COMPLETE, PageRuns([(0, RAM_PAGES)]))]
