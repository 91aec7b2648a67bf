# SPDX-License-Identifier: Apache-2.0
"""The host request queue, as the misc queue is called where messages are records.

`test_balloon_misc` has what it has in common with the bitmap dialect.
"""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from devices.balloon.dialects import HYBRID, RANGES, Dialect
from devices.balloon.misc import MiscCommand, MiscResponse, RequestStatus
from devices.testing.balloon.misc import CONT, DONE
from devices.testing.balloon.requests import record_request
from devices.testing.states import transfer_state
from pyvmm_native.runs import PageRuns
from tests.devices.balloon.misc_host import RAM_PAGES, MiscHost, pages, records_of
from tests.devices.balloon.posted_encoders import free_list_records

DIALECTS = [HYBRID, RANGES]


@pytest.fixture(params=DIALECTS, ids=lambda each: each.name)
def host(request: pytest.FixtureRequest) -> MiscHost:
    return MiscHost(dialect=request.param)


def test_blocks_of_the_free_lists_are_unused_pages() -> None:
    host = MiscHost(dialect=HYBRID)
    request = host.send_request()
    for blocks, flag in (([(4096, 10), (1024, 10)], CONT), ([(100, 1), (31, 0), (512, 8)], DONE)):
        records = free_list_records(blocks)
        message = record_request(records, cmd=request.cmd, req_id=request.id, flag=flag)
        host.driver.send_message(message)
    expected = pages(range(4096, 5120), range(1024, 2048), 100, 101, 31, range(512, 768))
    assert host.responses == [MiscResponse(RequestStatus.COMPLETE, expected)]
    assert host.board.ram.discarded == []


def test_a_page_may_be_named_twice_in_a_response(host: MiscHost) -> None:
    request = host.send_request()
    words = [word for pfn in (7, 7, 8) for word in records_of(host.board.balloon.dialect, [pfn])]
    message = record_request(words, cmd=request.cmd, req_id=request.id, flag=CONT)
    host.driver.send_message(message)
    host.driver.respond(request, [7, 9])
    assert host.responses == [MiscResponse(RequestStatus.COMPLETE, pages(7, 8, 9))]


WRONG: dict[str, dict[str, int]] = {
    "response of command 1 to command 0": {"cmd": 1},
    "no request has had the id 2": {"req_id": 2},
    "unknown flag 0x3": {"flag": 3},
    "unknown flag 0xff": {"flag": 0xFF},
    "data_len 4 is not a multiple of 8": {"data_len": 4},
    "data_len 64 but only 8 bytes supplied": {"data_len": 64},
    "but only 8 bytes supplied": {"data_len": 0xFFFF_FFF8},
}


@pytest.mark.parametrize("why", WRONG)
@pytest.mark.parametrize("messages_before", [0, 1])
def test_a_bad_header_invalidates_the_response(
    host: MiscHost, why: str, messages_before: int
) -> None:
    request = host.send_request()
    for _ in range(messages_before):
        host.driver.respond(request, [10], flag=CONT)
    record = 10 | 12 << 52 if host.board.balloon.dialect is HYBRID else 10 << 12 | 1
    header = {"cmd": request.cmd, "req_id": request.id, "flag": DONE} | WRONG[why]
    (used,) = host.driver.send_message(record_request([record], **header))
    assert used.length == 0
    (response,) = host.responses
    assert response.status is RequestStatus.INVALID_RESPONSE
    assert response.pages == PageRuns()
    assert why in response.why == host.why
    host.driver.respond(host.send_request(), [12])
    assert host.responses[1:] == [MiscResponse(RequestStatus.COMPLETE, pages(12))]


@pytest.mark.parametrize(
    ("dialect", "words", "why"),
    [
        (HYBRID, [5 | 11 << 52], "page_shift is not a page size, at byte 0 of the records"),
        (HYBRID, [5 | 12 << 52 | 8 << 58], "truncated record, at byte 0 of the records"),
        (HYBRID, [RAM_PAGES | 12 << 52], "1 of 1 pages are not RAM"),
        (HYBRID, [RAM_PAGES - 1 | 13 << 52], "1 of 2 pages are not RAM"),
        (RANGES, [5 << 12 | 1, 5 << 12], "truncated record, at byte 8 of the records"),
        (RANGES, [RAM_PAGES - 5 << 12 | 6], "1 of 6 pages are not RAM"),
    ],
)
def test_bad_records_invalidate_the_response(dialect: Dialect, words: list[int], why: str) -> None:
    host = MiscHost(dialect=dialect)
    host.send_request()
    host.driver.send_message(record_request(words, flag=DONE, req_id=1))
    assert host.responses == [MiscResponse(RequestStatus.INVALID_RESPONSE, PageRuns(), why)]


@pytest.mark.parametrize("length", [0, 7])
def test_a_truncated_header_invalidates_the_response(host: MiscHost, length: int) -> None:
    host.send_request()
    host.driver.send_message([bytes(length)])
    assert host.responses[0].status is RequestStatus.INVALID_RESPONSE
    assert host.responses[0].why == f"{length} bytes are too short for a header"


@pytest.mark.parametrize("command", [MiscCommand.DROP_CACHE, MiscCommand.SYNC])
def test_a_command_is_completed_by_a_header_without_records(
    host: MiscHost, command: MiscCommand
) -> None:
    host.driver.respond(host.send_request(command), [5])
    assert host.responses[0].status is RequestStatus.INVALID_RESPONSE
    assert "bytes of pages: not a response" in host.why
    request = host.send_request(command)
    host.driver.send_message(
        record_request([], cmd=command, req_id=request.id, flag=DONE, supplied_bytes=4096)
    )
    assert host.responses[1] == MiscResponse(RequestStatus.COMPLETE, PageRuns())


def test_the_memory_for_a_response_is_bounded_by_ram() -> None:
    """Name every other page in the longest messages, shifted by one each time."""
    host = MiscHost(dialect=HYBRID)
    request = host.send_request()
    for bits in (0x5555_5555_5555_5555, 0xAAAA_AAAA_AAAA_AAAA, 0x5555_5555_5555_5555):
        words = [w for pfn in range(0, RAM_PAGES, 64) for w in (pfn | 12 << 52 | 8 << 58, bits)]
        message = record_request(words, req_id=request.id, flag=CONT, supplied_bytes=1 << 20)
        host.driver.send_message(message)
    host.driver.respond(request)
    assert host.responses == [MiscResponse(RequestStatus.COMPLETE, PageRuns([(0, RAM_PAGES)]))]


# Ids have 16 bits.


def test_ids_start_again_after_the_largest(host: MiscHost) -> None:
    host.misc.last_id = 0xFFFE
    ids = []
    for pfn in (3, 4, 5):
        request = host.send_request()
        ids.append(request.id)
        host.driver.respond(request, [pfn])
    assert ids == [0xFFFF, 1, 2]
    assert [each.pages for each in host.responses] == [pages(3), pages(4), pages(5)]
    assert host.misc.last_id == 0x1_0001
    assert host.bad_payloads == 0


@pytest.mark.parametrize("late", [1, 0x1234, 0xFFFE, 0xFFFF])
def test_messages_with_ids_from_before_the_wrap_are_late(host: MiscHost, late: int) -> None:
    host.misc.last_id = 0xFFFF + 1
    request = host.send_request()
    assert request.id == 2
    host.driver.respond(None, [1], req_id=late)
    assert (host.misc.late_messages, host.responses, host.bad_payloads) == (1, [], 0)
    host.driver.respond(request, [2])
    assert host.responses == [MiscResponse(RequestStatus.COMPLETE, pages(2))]


def test_an_id_of_0_is_never_given(host: MiscHost) -> None:
    host.misc.last_id = 3 * 0xFFFF - 1
    assert [host.send_request().id, host.misc.cancel()] == [0xFFFF, True]
    assert host.send_request().id == 1
    host.driver.respond(None, [1], req_id=0)
    assert host.why == "no request has had the id 0"


def test_ids_continue_in_a_restored_device(host: MiscHost) -> None:
    host.misc.last_id = 0xFFFF
    new = MiscHost(host.board.ram, dialect=host.board.balloon.dialect)
    transfer_state(host.board.transport, new.board.transport)
    new.driver.driver = host.driver.driver
    new.driver.driver.board = new.board
    assert new.send_request().id == 1
    assert new.misc.last_id == 0x1_0000


def test_many_messages_are_collected_in_few_parts() -> None:
    """Free single pages all over RAM, as a fragmented guest names them, in 600 messages."""
    host = MiscHost(dialect=HYBRID)
    request = host.send_request()
    pfns = list(range(0, RAM_PAGES, 2))
    random.Random(1).shuffle(pfns)
    collected = host.misc._request
    assert collected is not None
    for i in range(0, len(pfns), 14):
        words = [pfn | 12 << 52 for pfn in pfns[i : i + 14]]
        host.driver.send_message(record_request(words, req_id=request.id, flag=CONT))
        sizes = [len(part) for part in collected._parts]
        assert all(after < before / 2 for before, after in pairwise(sizes))
    host.driver.respond(request)
    assert host.responses == [MiscResponse(RequestStatus.COMPLETE, pages(pfns))]
