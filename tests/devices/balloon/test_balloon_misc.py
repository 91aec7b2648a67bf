# SPDX-License-Identifier: Apache-2.0
"""The misc queue against drivers that answer well, late, twice, wrongly or never."""

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
    """A started balloon, the driver of its misc queue, and the answers that came."""

    def __init__(self, ram: AnonymousRam | None = None) -> None:
        self.driver = MiscDriver(BalloonDriver(BITMAP, ram=ram).start())
        self.board = self.driver.driver.board
        self.misc = self.board.balloon.misc
        self.answers: list[MiscResponse] = []

    def ask(self, command: Command = Command.GET_UNUSED_PAGES) -> None:
        self.misc.request(command, self.answers.append)

    def asked(self, command: Command = Command.GET_UNUSED_PAGES) -> MiscRequest:
        """Ask a driver that has offered its buffer; returns what it was given."""
        self.driver.offer_buffer()
        self.ask(command)
        (question,) = self.driver.take_requests()
        assert question.cmd == command
        return question

    @property
    def bad_payloads(self) -> int:
        return self.board.balloon.queues[MISC].counters.bad_payloads

    @property
    def why(self) -> str:
        """What was wrong with the last bad payload."""
        name, fields = next(e for e in reversed(self.board.tracer.events) if "why" in e[1])
        assert name == "balloon.bad_payload"
        return str(fields["why"])


@pytest.fixture
def host() -> Host:
    return Host()


def pages(*pfns: int | Iterable[int]) -> PageRuns:
    flat = [p for each in pfns for p in ([each] if isinstance(each, int) else each)]
    return PageRuns((pfn, 1) for pfn in flat)


# Questions and good answers.


def test_a_question_fills_the_buffer_and_interrupts(host: Host) -> None:
    host.driver.offer_buffer()
    assert host.driver.take_requests() == []
    interrupts = len(host.board.msi.triggered)
    host.ask()
    assert host.board.msi.triggered[interrupts:] == [1 + MISC]
    assert host.driver.take_requests() == [MiscRequest(0, 1)]
    assert host.answers == []


def test_the_answer_is_the_pages_named(host: Host) -> None:
    question = host.asked()
    (used,) = host.driver.respond(question, [5, 6, 7, 4000])
    assert used.length == 0
    assert host.answers == [MiscResponse(RequestStatus.COMPLETE, pages(5, 6, 7, 4000))]


def test_nothing_is_discarded(host: Host) -> None:
    host.board.ram.memory.write(5 * PAGE_BYTES, b"kept")
    host.driver.respond(host.asked(), [5])
    assert host.answers[0].pages == pages(5)
    assert host.board.ram.discarded == []
    assert host.board.balloon.counters.discarded_bytes == 0
    assert host.board.ram.memory.read(5 * PAGE_BYTES, 4) == b"kept"


def test_several_messages_are_one_answer(host: Host) -> None:
    question = host.asked()
    for first in (0, 2000, 1000):  # in any order
        host.driver.respond(question, range(first, first + 100), flag=CONT)
        assert host.answers == []
    host.driver.respond(question, [50, 150])
    expected = pages(range(100), range(1000, 1100), range(2000, 2100), 150)
    assert host.answers == [MiscResponse(RequestStatus.COMPLETE, expected)]


def test_an_answer_may_name_no_page(host: Host) -> None:
    host.driver.respond(host.asked(), bmap_len=64, supplied_bytes=64, start_pfn=0)
    host.driver.respond(host.asked())  # a header alone
    assert host.answers == [MiscResponse(RequestStatus.COMPLETE, PageRuns())] * 2
    assert host.bad_payloads == 0


def test_larger_pages(host: Host) -> None:
    host.driver.respond(host.asked(), [1], page_shift=16, start_pfn=0)
    assert host.answers[0].pages == PageRuns([(16, 16)])


def test_questions_follow_each_other_with_new_ids(host: Host) -> None:
    for expected in (1, 2, 3):
        question = host.asked()
        assert question.id == expected
        host.driver.respond(question, [expected])
    assert [answer.pages for answer in host.answers] == [pages(1), pages(2), pages(3)]


def test_a_question_waits_for_the_buffer(host: Host) -> None:
    host.ask()
    assert host.driver.take_requests() == []
    host.driver.offer_buffer()
    (question,) = host.driver.take_requests()
    host.driver.respond(question, [9])
    assert host.answers == [MiscResponse(RequestStatus.COMPLETE, pages(9))]


def test_a_larger_buffer_is_used_from_its_start(host: Host) -> None:
    host.driver.offer_buffer(10, 90)
    host.ask()
    assert host.driver.take_requests() == [MiscRequest(0, 1)]


@pytest.mark.parametrize("command", [Command.DROP_CACHE, Command.SYNC])
def test_commands_are_answered_by_a_header(host: Host, command: Command) -> None:
    host.driver.respond(host.asked(command))
    assert host.answers == [MiscResponse(RequestStatus.COMPLETE, PageRuns())]


@pytest.mark.parametrize("command", list(Command))
def test_a_driver_may_not_know_the_command(host: Host, command: Command) -> None:
    host.driver.respond(host.asked(command), flag=UNSUPPORTED)
    assert host.answers == [MiscResponse(RequestStatus.UNSUPPORTED, PageRuns())]
    assert host.bad_payloads == 0


# Drivers that are late, early, twice, or silent.


def test_a_withdrawn_question_is_answered_in_vain(host: Host) -> None:
    old = host.asked()
    assert host.misc.cancel() is True
    new = host.asked()
    host.driver.respond(old, [1], flag=CONT)
    host.driver.respond(old, [2])
    assert host.answers == []
    assert host.misc.late_messages == 2
    host.driver.respond(new, [3])
    assert host.answers == [MiscResponse(RequestStatus.COMPLETE, pages(3))]
    assert host.bad_payloads == 0


def test_a_question_withdrawn_before_it_was_given(host: Host) -> None:
    host.ask()
    assert host.misc.cancel() is False
    host.driver.offer_buffer()
    assert host.driver.take_requests() == []
    assert host.misc.cancel() is False, "nothing is open"
    host.ask()
    assert host.driver.take_requests() == [MiscRequest(0, 1)]


def test_a_second_answer_is_late(host: Host) -> None:
    question = host.asked()
    for pfn in (1, 2):
        assert [used.length for used in host.driver.respond(question, [pfn])] == [0]
    assert host.answers == [MiscResponse(RequestStatus.COMPLETE, pages(1))]
    assert host.misc.late_messages == 1


@pytest.mark.parametrize("req_id", [0, 1, 2, 1 << 63, (1 << 64) - 1])
def test_an_answer_without_a_question(host: Host, req_id: int) -> None:
    host.driver.respond(None, [1], req_id=req_id)
    assert host.why == f"no request has had the id {req_id}"
    host.ask()  # waits for the buffer: the driver cannot know its id
    host.driver.respond(None, [1], req_id=1)
    assert host.bad_payloads == 2
    host.driver.offer_buffer()
    (question,) = host.driver.take_requests()
    host.driver.respond(question, [7])
    assert host.answers == [MiscResponse(RequestStatus.COMPLETE, pages(7))]


def test_a_driver_that_offers_its_buffer_before_it_answers(host: Host) -> None:
    question = host.asked()
    host.driver.offer_buffer()
    assert host.driver.take_requests() == [], "one question at a time"
    host.driver.respond(question, [4])
    assert host.answers == [MiscResponse(RequestStatus.COMPLETE, pages(4))]
    host.ask()
    assert len(host.driver.take_requests()) == 1


# Wrong buffers for questions.


def test_a_second_buffer_comes_back_empty(host: Host) -> None:
    host.driver.offer_buffer()
    host.driver.offer_buffer()
    assert [used.length for used in host.driver.used] == [0]
    assert host.why == "a request buffer is already in flight"
    host.ask()
    assert host.driver.take_requests() == [MiscRequest(0, 1)]


@pytest.mark.parametrize("sizes", [(15,), (1,), (7, 8)])
def test_a_buffer_that_is_too_small(host: Host, sizes: tuple[int, ...]) -> None:
    host.ask()
    host.driver.offer_buffer(*sizes)
    assert [used.length for used in host.driver.used] == [0]
    assert "too few for a request" in host.why
    host.driver.offer_buffer()
    assert host.driver.take_requests() == [MiscRequest(0, 1)], "the question still waits"


def test_a_buffer_both_ways(host: Host) -> None:
    question = host.asked()
    host.driver.offer_buffer(readable=[bytes(32)])
    assert [used.length for used in host.driver.used] == [0]
    assert "both a message and a request buffer" in host.why
    host.driver.respond(question, [1])
    assert host.answers == [MiscResponse(RequestStatus.COMPLETE, pages(1))]


# Messages that make no sense spoil the answer.

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
def test_a_bad_message_spoils_the_answer(host: Host, why: str, messages_before: int) -> None:
    question = host.asked()
    for _ in range(messages_before):
        host.driver.respond(question, [10], flag=CONT)
    header = WRONG[why]
    (used,) = host.driver.respond(question, [header.get("start_pfn", 0) + 3], **header)
    assert used.length == 0
    (answer,) = host.answers
    assert answer.status is RequestStatus.INVALID_RESPONSE
    assert answer.pages == PageRuns()
    assert why in answer.why == host.why
    # What else the driver has to say on it is late, and the next question is another.
    host.driver.respond(question, [11])
    assert host.misc.late_messages == 1
    host.driver.respond(host.asked(), [12])
    assert host.answers[1:] == [MiscResponse(RequestStatus.COMPLETE, pages(12))]
    assert host.bad_payloads == 1


@pytest.mark.parametrize("message", [[], [b"x"], [bytes(31)]])
def test_a_message_cut_short(host: Host, message: list[bytes]) -> None:
    host.driver.send_message(message or [b""])
    assert host.bad_payloads == 1, "and nothing was open"
    host.asked()
    host.driver.send_message(message or [b""])
    assert host.answers[0].status is RequestStatus.INVALID_RESPONSE


def test_a_message_too_long_to_be_read(host: Host) -> None:
    host.driver.send_message([bytes(1 << 20), bytes(1 << 20)])
    assert host.answers == [], "nothing was open"
    host.asked()
    (used,) = host.driver.send_message([bytes(1 << 20), bytes(1 << 20)])
    assert used.length == 0
    assert host.answers == [
        MiscResponse(
            RequestStatus.INVALID_RESPONSE, PageRuns(), f"request of {2 << 20} bytes is too long"
        )
    ]


def test_one_page_outside_ram_spoils_all() -> None:
    host = Host(AnonymousRam((0, 16 * MIB), (32 * MIB, 32 * MIB)))
    hole = 16 * MIB // PAGE_BYTES
    host.driver.respond(host.asked(), [hole - 1, 32 * MIB // PAGE_BYTES])
    assert host.answers[-1].pages.pages == 2, "an answer may span the hole"
    host.driver.respond(host.asked(), range(hole - 5, hole + 1))
    assert host.answers[-1] == MiscResponse(
        RequestStatus.INVALID_RESPONSE, PageRuns(), "1 of 6 pages are not RAM"
    )


@pytest.mark.parametrize(
    "header", [{"flag": CONT}, {"flag": 3}, {"bmap_len": 8, "supplied_bytes": 8}]
)
@pytest.mark.parametrize("command", [Command.DROP_CACHE, Command.SYNC])
def test_commands_have_one_answer(host: Host, command: Command, header: dict[str, Any]) -> None:
    host.driver.respond(host.asked(command), **header)
    assert host.answers[0].status is RequestStatus.INVALID_RESPONSE


def test_an_answer_without_end(host: Host) -> None:
    question = host.asked()
    for i in range(MAX_MESSAGES):
        host.driver.respond(question, [i % 100], flag=CONT)
    assert host.answers == []
    host.driver.respond(question, [0], flag=CONT)
    assert host.answers == [
        MiscResponse(
            RequestStatus.INVALID_RESPONSE,
            PageRuns(),
            f"more than {MAX_MESSAGES} messages in one response",
        )
    ]
    host.driver.respond(question, [0], flag=DONE)
    assert host.misc.late_messages == 1


def test_what_is_kept_of_an_answer_is_bounded_by_ram(host: Host) -> None:
    """The worst there is: every other page, again and again, shifted, in the longest messages."""
    question = host.asked()
    even, odd = bytes([0x55]) * (RAM_PAGES // 8), bytes([0xAA]) * (RAM_PAGES // 8)
    header = struct.pack("<HHHHQQQ", 0, 12, CONT, 0, question.id, 0, RAM_PAGES // 8)
    for bits in (even, odd, even):
        host.driver.send_message([header, bits + bytes((1 << 20) - len(bits))])
    host.driver.respond(question)
    assert host.answers == [MiscResponse(RequestStatus.COMPLETE, PageRuns([(0, RAM_PAGES)]))]


# Resets.


def test_a_reset_ends_the_question(host: Host) -> None:
    host.asked()
    host.driver.driver.reset()
    assert host.answers == [MiscResponse(RequestStatus.RESET, PageRuns())]


def test_a_reset_ends_a_question_that_waits(host: Host) -> None:
    host.ask()
    host.driver.driver.reset()
    assert host.answers == [MiscResponse(RequestStatus.RESET, PageRuns())]


def test_ids_go_on_after_a_reset(host: Host) -> None:
    old = host.asked()
    host.driver.offer_buffer()
    driver = MiscDriver(host.driver.driver.start())
    host.driver = driver
    new = host.asked()
    assert (old.id, new.id) == (1, 2)
    driver.respond(old, [1])
    assert host.misc.late_messages == 1
    driver.respond(new, [2])
    assert [answer.status for answer in host.answers] == [
        RequestStatus.RESET,
        RequestStatus.COMPLETE,
    ]


def test_a_buffer_is_forgotten_with_a_reset(host: Host) -> None:
    host.driver.offer_buffer()
    driver = host.driver.driver.start()
    host.ask()
    assert driver.queues[MISC].take_used() == []


# Negotiation.


def test_whether_a_driver_takes_questions(host: Host) -> None:
    balloon = host.board.balloon
    assert balloon.has_live(Role.MISC)
    host.driver.driver.reset()
    assert not balloon.has_live(Role.MISC)
    host.driver.driver.start(features=ALL_FEATURES & ~MISC_VQ)
    assert not balloon.has_live(Role.MISC)
    assert balloon.has_live(Role.INFLATE)
    assert not BalloonDriver(STANDARD).start().board.balloon.has_live(Role.MISC)


def test_the_queue_is_found_behind_whatever_queues_exist() -> None:
    """A driver without STATS_VQ numbers its misc queue 2; no driver of the dialect is such."""
    driver = BalloonDriver(BITMAP).start(features=ALL_FEATURES & ~(1 << 1))
    misc = driver.board.balloon.misc
    driver.queues[STATS].add([], [16])
    driver.notify(STATS)
    driver.board.serve()
    misc.request(Command.SYNC, lambda answer: None)
    (used,) = driver.queues[STATS].take_used()
    assert struct.unpack("<H6xQ", used.data) == (2, 1)
