# SPDX-License-Identifier: Apache-2.0
"""The misc queue against any driver: whatever it offers and says, in any order, these hold.

* An answer is delivered once at most, only to the question that is open, and it holds the union of
  the pages its messages named, all of them RAM, or nothing.
* Every buffer goes back, except for the one that waits for a question; none goes back as a question
  but that one.
* Nothing is discarded, and the device keeps running.

A model that keeps sets of frames says what is to be expected of each step.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from devices.balloon.dialects import BITMAP
from devices.balloon.misc import Command, MiscResponse, RequestStatus
from devices.testing.balloon.driver import BalloonDriver
from devices.testing.balloon.misc import CONT, DONE, UNSUPPORTED, MiscDriver
from devices.testing.driver import NEEDS_RESET
from devices.testing.ram import AnonymousRam
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns

LOW_PAGES = 16 * MIB // PAGE_BYTES
RAM = AnonymousRam((0, 16 * MIB), (32 * MIB, 32 * MIB))
FRAMES = {*range(LOW_PAGES), *range(32 * MIB // PAGE_BYTES, 64 * MIB // PAGE_BYTES)}

starts = st.sampled_from([0, 64, LOW_PAGES - 64, 32 * MIB // PAGE_BYTES, LOW_PAGES, 1 << 51])
bitmaps = st.lists(st.integers(0, 127), max_size=6).map(
    lambda bits: sum(1 << bit for bit in set(bits)).to_bytes(16, "little")
)


def mostly(usual: st.SearchStrategy[Any], *odd: Any) -> st.SearchStrategy[Any]:
    """`usual` in most draws, so that long conversations come about."""
    return st.integers(0, 9).flatmap(lambda n: st.sampled_from(odd) if n == 0 else usual)


@dataclass(frozen=True)
class Message:
    """One message of the driver; `age` says how many questions ago its id was given out."""

    age: int
    cmd: int | None
    """None for the command of the question."""
    flag: int
    page_shift: int
    start: int
    bitmap: bytes
    bmap_len: int | None
    """None for what is supplied."""

    @property
    def length(self) -> int:
        return len(self.bitmap) if self.bmap_len is None else self.bmap_len

    def frames(self) -> set[int] | None:
        """The frames it names, as the format has it; None if it breaks a rule."""
        if not self.length:
            return set()
        if self.length % 8 or self.length > len(self.bitmap):
            return None
        bits = int.from_bytes(self.bitmap[: self.length], "little")
        named = {self.start + bit for bit in range(128) if bits >> bit & 1}
        factor = 1 << (self.page_shift - 12)
        if (self.start + 8 * self.length) * factor > 1 << 52:
            return None
        return {frame * factor + i for frame in named for i in range(factor)}


messages = st.builds(
    Message,
    age=mostly(st.just(0), 1, 2, -1),
    cmd=mostly(st.none(), 0, 1, 2, 3, 0xFFFF),
    flag=mostly(st.sampled_from([CONT, CONT, DONE]), UNSUPPORTED, 3, 0x8000),
    page_shift=mostly(st.just(12), 13),
    start=starts,
    bitmap=mostly(bitmaps, b""),
    bmap_len=mostly(st.none(), 0, 8, 12, 24, 1 << 63),
)
others = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from(Command)),
    st.tuples(st.just("offer"), mostly(st.sampled_from([16, 40]), 1, 15)),
    st.tuples(st.sampled_from(["withdraw", "reset", "raw"]), st.binary(max_size=31)),
)
resume = st.sampled_from([("offer", 16), ("ask", Command.GET_UNUSED_PAGES)])
steps = st.lists(st.one_of(messages, messages, messages, resume, others), min_size=10, max_size=60)


@dataclass
class Model:
    """What a right device does, told from the format alone."""

    held: bool = False
    command: Command | None = None
    id: int | None = None
    frames: set[int] = field(default_factory=set)
    given: list[int] = field(default_factory=list)
    """Every id the driver was given."""
    answers: list[MiscResponse] = field(default_factory=list)
    late: int = 0

    def end(self, ending: RequestStatus) -> None:
        if self.command is not None:
            pages = self.frames if ending is RequestStatus.COMPLETE else set()
            self.answers.append(MiscResponse(ending, PageRuns((pfn, 1) for pfn in pages)))
        self.command, self.id, self.frames = None, None, set()

    def spoil(self) -> None:
        if self.id is not None:
            self.end(RequestStatus.INVALID_RESPONSE)

    def hear(self, message: Message, req_id: int) -> None:
        if req_id not in self.given:
            return self.spoil()
        if req_id != self.id:
            self.late += 1
            return None
        frames = message.frames()
        if message.cmd not in (None, self.command):
            return self.spoil()
        if message.flag == UNSUPPORTED:
            return self.end(RequestStatus.UNSUPPORTED)
        if self.command is not Command.GET_UNUSED_PAGES:
            done = message.flag == DONE and not message.length
            return self.end(RequestStatus.COMPLETE) if done else self.spoil()
        if message.flag not in (CONT, DONE) or frames is None or not frames <= FRAMES:
            return self.spoil()
        self.frames |= frames
        return self.end(RequestStatus.COMPLETE) if message.flag == DONE else None


class Conversation:
    """One device and driver, and the model beside them."""

    def __init__(self) -> None:
        RAM.discarded.clear()
        self.driver = BalloonDriver(BITMAP, ram=RAM).start()
        self.misc = self.driver.board.balloon.misc
        self.guest = MiscDriver(self.driver)
        self.model = Model()
        self.answers: list[MiscResponse] = []

    def step(self, step: Any) -> None:
        if isinstance(step, Message):
            self.say(step)
        else:
            getattr(self, step[0])(step[1])
        self.note_questions()
        assert [(a.status, a.pages) for a in self.answers] == [
            (a.status, a.pages) for a in self.model.answers
        ]
        assert self.misc.late_messages == self.model.late
        assert not self.driver.status & NEEDS_RESET
        assert RAM.discarded == []

    def say(self, message: Message) -> None:
        given = self.model.given
        req_id = given[-1 - message.age] if message.age < len(given) and message.age >= 0 else 0
        if message.age < 0:
            req_id = (given[-1] if given else 0) + 1
        cmd = (self.model.command or 0) if message.cmd is None else message.cmd
        header = struct.pack(
            "<HHHHQQQ", cmd, message.page_shift, message.flag, 0, req_id, message.start,
            message.length,
        )  # fmt: skip
        used = self.guest.send_message([header, message.bitmap] if message.bitmap else [header])
        assert [each.length for each in used] == [0]
        self.model.hear(message, req_id)

    def raw(self, data: bytes) -> None:
        used = self.guest.send_message([data])
        assert [each.length for each in used] == [0]
        self.model.spoil()

    def ask(self, command: Command) -> None:
        if self.model.command is None:
            self.model.command = command
            self.misc.request(command, self.answers.append)

    def withdraw(self, _: bytes) -> None:
        assert self.misc.cancel() == (self.model.id is not None)
        self.model.command, self.model.id, self.model.frames = None, None, set()

    def offer(self, size: int) -> None:
        before = len(self.guest.used)
        self.guest.offer_buffer(size)
        refused = size < 16 or self.model.held
        assert [used.length for used in self.guest.used[before:]] == [0] * refused
        self.model.held |= not refused

    def reset(self, _: bytes) -> None:
        self.guest = MiscDriver(self.driver.start())
        self.model.held = False
        self.model.end(RequestStatus.RESET)

    def note_questions(self) -> None:
        """A question goes out exactly when there is one and a buffer for it."""
        questions = self.guest.take_requests()
        due = self.model.command is not None and self.model.id is None and self.model.held
        assert len(questions) == due
        for question in questions:
            assert question.cmd == self.model.command
            assert question.id not in self.model.given
            self.model.id, self.model.held = question.id, False
            self.model.given.append(question.id)


@settings(max_examples=250, deadline=None)
@given(steps)
def test_any_conversation(taken: list[Any]) -> None:
    conversation = Conversation()
    conversation.step(("offer", 16))
    conversation.step(("ask", Command.GET_UNUSED_PAGES))
    for step in taken:
        conversation.step(step)
