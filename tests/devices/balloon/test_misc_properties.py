# SPDX-License-Identifier: Apache-2.0
"""The misc queue with any driver, in each dialect that has one. For any buffers and messages in any
order, these invariants hold:

* A response is delivered at most once, only to the open request, and holds the union of the pages
  its messages named, all of them RAM, or none.
* Every buffer is returned except the one kept for a request, and only that one carries a request.
* Nothing is discarded, and the device keeps running.

A model with sets of frames gives the expected result of each step.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from devices.balloon.dialects import BITMAP, HYBRID, RANGES, Dialect
from devices.balloon.misc import MiscCommand, MiscResponse, RequestStatus
from devices.testing.balloon.driver import BalloonDriver
from devices.testing.balloon.misc import CONT, DONE, UNSUPPORTED, MiscDriver
from devices.testing.balloon.requests import ALL_64, range_records
from devices.testing.driver import NEEDS_RESET
from devices.testing.ram import AnonymousRam
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns
from tests.fuzz.page_oracle import hybrid_spans, range_spans

LOW_PAGES = 16 * MIB // PAGE_BYTES
RAM = AnonymousRam((0, 16 * MIB), (32 * MIB, 32 * MIB))
FRAMES = {*range(LOW_PAGES), *range(32 * MIB // PAGE_BYTES, 64 * MIB // PAGE_BYTES)}

starts = st.sampled_from([0, 64, LOW_PAGES - 64, 32 * MIB // PAGE_BYTES, LOW_PAGES, 1 << 51])
bitmaps = st.lists(st.integers(0, 127), max_size=6).map(
    lambda bits: sum(1 << bit for bit in set(bits)).to_bytes(16, "little")
)


def mostly(usual: st.SearchStrategy[Any], *odd: Any) -> st.SearchStrategy[Any]:
    """Draw mostly `usual`, so that exchanges become long."""
    return st.integers(0, 9).flatmap(lambda n: st.sampled_from(odd) if n == 0 else usual)


@dataclass(frozen=True)
class Message:
    """One message of the driver; `age` is the number of requests since the one with its id."""

    age: int
    cmd: int | None
    """None: the command of the request."""
    flag: int
    page_shift: int
    start: int
    bitmap: bytes
    bmap_len: int | None
    """None: the size of the bitmap supplied."""

    def data(self, dialect: Dialect) -> bytes:
        """Return the bitmap, or records that name the same pages."""
        bits = int.from_bytes(self.bitmap, "little")
        if dialect is BITMAP:
            return self.bitmap
        if dialect is RANGES:
            words = range_records(self.start + bit for bit in range(128) if bits >> bit & 1)
        else:
            step = 64 << self.page_shift - 12
            form = self.page_shift << 52 | 8 << 58
            halves = (bits & ALL_64, bits >> 64) if self.bitmap else ()
            words = [
                w for i, half in enumerate(halves) for w in (self.start + i * step | form, half)
            ]
        return struct.pack(f"<{len(words)}Q", *words)

    def length(self, dialect: Dialect) -> int:
        length = len(self.data(dialect)) if self.bmap_len is None else self.bmap_len
        return length if dialect is BITMAP else length & 0xFFFF_FFFF

    def frames(self, dialect: Dialect) -> set[int] | None:
        """Return the frames that the message names; None if it violates the format."""
        data, length = self.data(dialect), self.length(dialect)
        if not length:
            return set()
        if length % 8 or length > len(data):
            return None
        if dialect is not BITMAP:
            spans_of = hybrid_spans if dialect is HYBRID else range_spans
            spans = spans_of(list(struct.unpack_from(f"<{length // 8}Q", data)))
            if spans is None:
                return None
            return {pfn for start, n in spans for pfn in range(start, start + n)}
        bits = int.from_bytes(data[:length], "little")
        named = {self.start + bit for bit in range(128) if bits >> bit & 1}
        factor = 1 << (self.page_shift - 12)
        if (self.start + 8 * length) * factor > 1 << 52:
            return None
        return {frame * factor + i for frame in named for i in range(factor)}

    def elements(self, dialect: Dialect, cmd: int, request_id: int) -> list[bytes]:
        """Return the message as buffer elements."""
        data, length = self.data(dialect), self.length(dialect)
        if dialect is BITMAP:
            header = struct.pack(
                "<HHHHQQQ", cmd, self.page_shift, self.flag, 0, request_id, self.start, length
            )
        else:
            header = struct.pack("<BBHI", cmd, self.flag, request_id, length)
        return [header, data] if data else [header]


messages = st.builds(
    Message,
    age=mostly(st.just(0), 1, 2, -1),
    cmd=mostly(st.none(), 0, 1, 2, 3, 0xFF),
    flag=mostly(st.sampled_from([CONT, CONT, DONE]), UNSUPPORTED, 3, 0x80),
    page_shift=mostly(st.just(12), 13),
    start=starts,
    bitmap=mostly(bitmaps, b""),
    bmap_len=mostly(st.none(), 0, 8, 12, 24, 1 << 63),
)
others = st.one_of(
    st.tuples(st.just("request"), st.sampled_from(MiscCommand)),
    st.tuples(st.just("offer"), mostly(st.sampled_from([16, 40]), 1, 15)),
    st.tuples(st.sampled_from(["cancel", "reset", "raw"]), st.binary(max_size=7)),
)
resume = st.sampled_from([("offer", 16), ("request", MiscCommand.GET_UNUSED_PAGES)])
steps = st.lists(st.one_of(messages, messages, messages, resume, others), min_size=10, max_size=60)


@dataclass
class Model:
    """The expected behaviour of the device, from the format alone."""

    dialect: Dialect
    has_buffer: bool = False
    command: MiscCommand | None = None
    id: int | None = None
    frames: set[int] = field(default_factory=set)
    sent_ids: list[int] = field(default_factory=list)
    """Ids of all requests sent to the driver."""
    responses: list[MiscResponse] = field(default_factory=list)
    late: int = 0

    def end(self, status: RequestStatus) -> None:
        if self.command is not None:
            pages = self.frames if status is RequestStatus.COMPLETE else set()
            self.responses.append(MiscResponse(status, PageRuns((pfn, 1) for pfn in pages)))
        self.command, self.id, self.frames = None, None, set()

    def invalidate(self) -> None:
        if self.id is not None:
            self.end(RequestStatus.INVALID_RESPONSE)

    def receive(self, message: Message, req_id: int) -> None:
        if req_id not in self.sent_ids:
            return self.invalidate()
        if req_id != self.id:
            self.late += 1
            return None
        frames = message.frames(self.dialect)
        if message.cmd not in (None, self.command):
            return self.invalidate()
        if message.flag == UNSUPPORTED:
            return self.end(RequestStatus.UNSUPPORTED)
        if self.command is not MiscCommand.GET_UNUSED_PAGES:
            done = message.flag == DONE and not message.length(self.dialect)
            return self.end(RequestStatus.COMPLETE) if done else self.invalidate()
        if message.flag not in (CONT, DONE) or frames is None or not frames <= FRAMES:
            return self.invalidate()
        self.frames |= frames
        return self.end(RequestStatus.COMPLETE) if message.flag == DONE else None


class Exchange:
    """A device, its driver, and the model."""

    def __init__(self, dialect: Dialect) -> None:
        RAM.discarded.clear()
        self.driver = BalloonDriver(dialect, ram=RAM).start()
        self.misc = self.driver.board.balloon.misc
        self.guest = MiscDriver(self.driver)
        self.model = Model(dialect)
        self.responses: list[MiscResponse] = []

    def step(self, step: Any) -> None:
        if isinstance(step, Message):
            self.send_message(step)
        else:
            getattr(self, step[0])(step[1])
        self.check_requests()
        assert [(a.status, a.pages) for a in self.responses] == [
            (a.status, a.pages) for a in self.model.responses
        ]
        assert self.misc.late_messages == self.model.late
        assert not self.driver.status & NEEDS_RESET
        assert RAM.discarded == []

    def send_message(self, message: Message) -> None:
        sent_ids = self.model.sent_ids
        req_id = (
            sent_ids[-1 - message.age] if message.age < len(sent_ids) and message.age >= 0 else 0
        )
        if message.age < 0:
            req_id = (sent_ids[-1] if sent_ids else 0) + 1
        cmd = (self.model.command or 0) if message.cmd is None else message.cmd
        used = self.guest.send_message(message.elements(self.model.dialect, cmd, req_id))
        assert [each.length for each in used] == [0]
        self.model.receive(message, req_id)

    def raw(self, data: bytes) -> None:
        used = self.guest.send_message([data])
        assert [each.length for each in used] == [0]
        self.model.invalidate()

    def request(self, command: MiscCommand) -> None:
        if self.model.command is None:
            self.model.command = command
            self.misc.request(command, self.responses.append)

    def cancel(self, _: bytes) -> None:
        assert self.misc.cancel() == (self.model.id is not None)
        self.model.command, self.model.id, self.model.frames = None, None, set()

    def offer(self, size: int) -> None:
        before = len(self.guest.used)
        self.guest.offer_buffer(size)
        refused = size < 16 or self.model.has_buffer
        assert [used.length for used in self.guest.used[before:]] == [0] * refused
        self.model.has_buffer |= not refused

    def reset(self, _: bytes) -> None:
        self.guest = MiscDriver(self.driver.start())
        self.model.has_buffer = False
        self.model.end(RequestStatus.RESET)

    def check_requests(self) -> None:
        """Check that a request is sent exactly if a request and a buffer are waiting."""
        requests = self.guest.take_requests()
        due = self.model.command is not None and self.model.id is None and self.model.has_buffer
        assert len(requests) == due
        for request in requests:
            assert request.cmd == self.model.command
            assert request.id not in self.model.sent_ids
            self.model.id, self.model.has_buffer = request.id, False
            self.model.sent_ids.append(request.id)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([BITMAP, HYBRID, RANGES]), steps)
def test_any_sequence_of_messages_matches_the_model(dialect: Dialect, taken: list[Any]) -> None:
    exchange = Exchange(dialect)
    exchange.step(("offer", 16))
    exchange.step(("request", MiscCommand.GET_UNUSED_PAGES))
    for step in taken:
        exchange.step(step)
