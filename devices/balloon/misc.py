# SPDX-License-Identifier: Apache-2.0
"""The misc queue of the bitmap dialect: the device asks, the driver answers.

The driver keeps one device-writable buffer on the queue. To ask, the device fills in 16 bytes,
little-endian, and returns the buffer::

    u16 cmd          what is asked, a `Command`
    u16 reserved[3]  0
    u64 param        id of the question

The driver answers on the same queue with device-readable messages in the format of
`devices.balloon.bitmap`, whose `cmd` and `req_id` are those of the question: any number with flag
CONT and a last one with DONE or UNSUPPORTED. Then it offers the buffer again. Which of the two a
buffer is shows in who may write it.

One question is open at a time, and only messages with its id are listened to. Ids only ever grow,
over resets too, so a message that comes late, twice, or for a question given up names an older id;
it is counted and otherwise ignored. Any other bad message makes the whole answer bad: a driver that
is wrong about one page is not to be believed about the others. How much a driver can have us keep
and do is bounded by RAM, the length of a message and `MAX_MESSAGES`.

Pages that the guest calls unused may be in use again before the answer is here. A copy of memory
that has logged writes since before the question may leave them out. Nothing is ever discarded
because of an answer, and nothing here could.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import NamedTuple

from devices.balloon import bitmap
from devices.balloon.dialects import CompleteBuffer
from devices.errors import BadPayload
from devices.ports import GuestRam, Tracer
from devices.state import Fields, Payload, Restore
from devices.virtio.queue import check_in_flight, save_in_flight
from pyvmm_native.ring import Chain, SplitQueue
from pyvmm_native.runs import PageRuns

QUESTION = struct.Struct("<H6xQ")

MAX_MESSAGES = 1024
"""Most messages of one answer. A message has a bit for each page of up to 32 GiB; drivers short of
memory send smaller ones, ours with 128 MiB each."""


class Command(IntEnum):
    """What can be asked. The proposal of 2016 has the first; the others are our own driver's."""

    GET_UNUSED_PAGES = 0
    DROP_CACHE = 1
    SYNC = 2


class Flag(IntEnum):
    """What a message says of its answer; a value, not a bit number."""

    CONT = 0
    DONE = 1
    UNSUPPORTED = 2
    """The driver does not know the command; our own driver's, others leave it unanswered."""


class RequestStatus(Enum):
    """How a question ended; one that was withdrawn has no ending."""

    ANSWERED = "answered"
    UNSUPPORTED = "unsupported"
    INVALID_RESPONSE = "bad answer"
    RESET = "reset"


class MiscResponse(NamedTuple):
    """What came of a question."""

    ending: RequestStatus
    pages: PageRuns
    """Pages that were unused when the guest looked: ANSWERED GET_UNUSED_PAGES, else empty."""
    why: str = ""
    """What was wrong with a INVALID_RESPONSE."""


OnAnswer = Callable[[MiscResponse], None]


@dataclass
class _Request:
    command: Command
    on_answer: OnAnswer
    id: int | None = None
    """None until the driver was given the question."""
    messages: int = 0
    pages: PageRuns = field(default_factory=PageRuns)


class MiscQueue:
    """Puts one question at a time and collects its answer."""

    def __init__(self, ram: GuestRam, give_back: CompleteBuffer, tracer: Tracer) -> None:
        self._ram = ram
        self._complete_with = give_back
        self._tracer = tracer
        self._buffer: Chain | None = None
        self._question: _Request | None = None
        self.last_id = 0
        """Id of the last question that the driver was given."""
        self.late_messages = 0
        """Messages for a question that was over already, since the device was made."""

    # What the machine calls.

    def ask(self, command: Command, on_answer: OnAnswer) -> None:
        """Put a question as soon as the driver offers its buffer, which may be now.

        `on_answer` is called once, while the device serves a buffer or is reset, unless the
        question is withdrawn before. One question at a time: the last one is over or withdrawn.
        """
        assert self._question is None, "one question at a time"
        self._question = _Request(command, on_answer)
        if self._buffer is not None:
            buffer, self._buffer = self._buffer, None
            self._complete_with(buffer, self._fill_in(buffer, self._question))

    def withdraw(self) -> bool:
        """Give up the open question, if any; whether the driver had been given it."""
        question, self._question = self._question, None
        return question is not None and question.id is not None

    # What the device calls.

    def serve(self, chain: Chain) -> int | None:
        if chain.writable_bytes:
            return self._serve_request_buffer(chain)
        try:
            self._serve_message(chain.readable)
        except BadPayload as error:
            self._spoil(str(error))
            raise
        return 0

    def on_bad_payload(self, chain: Chain) -> int:
        """A message that was too long to be served spoils the answer, too."""
        if not chain.writable_bytes:
            self._spoil(f"a message of {chain.readable_bytes} bytes")
        return 0

    def reset(self) -> None:
        """The driver took its buffer back, and will not answer any more."""
        self._buffer = None
        self._end(RequestStatus.RESET)

    def save_state(self) -> Payload:
        """The driver's buffer and the last id, after which the answer to a question that is open
        now is a late message; the question itself belongs to the process that asked it."""
        return {
            "late_messages": self.late_messages,
            "last_id": self.last_id,
            "buffer": save_in_flight(self._buffer),
        }

    def check_state(self, fields: Fields, ring: SplitQueue | None) -> Restore:
        """As `QueueHandler.check_state`."""
        late_messages, last_id = fields.counter("late_messages"), fields.counter("last_id")
        buffer = check_in_flight(fields, "buffer", ring)
        if buffer is not None and buffer.writable_bytes < QUESTION.size:
            raise fields.error("buffer", f"of {buffer.writable_bytes} bytes is too small")

        def restore() -> None:
            self.late_messages, self.last_id = late_messages, last_id
            self._buffer = buffer
            self._question = None

        return restore

    def _serve_request_buffer(self, chain: Chain) -> int | None:
        """Use the buffer for a question that waits for it, or keep it for the next one."""
        if chain.readable_bytes:
            raise BadPayload("a buffer cannot be both a message and room for a question")
        if chain.writable_bytes < QUESTION.size:
            raise BadPayload(f"{chain.writable_bytes} bytes are too few for a question")
        if self._buffer is not None:
            raise BadPayload("a buffer for questions is already held")
        if self._question is not None and self._question.id is None:
            return self._fill_in(chain, self._question)
        self._buffer = chain
        return None

    def _fill_in(self, buffer: Chain, question: _Request) -> int:
        self.last_id += 1
        question.id = self.last_id
        return buffer.write(QUESTION.pack(question.command, question.id))

    def _serve_message(self, payload: bytes) -> None:
        header = bitmap.read_header(payload)
        question = self._question
        if not 0 < header.req_id <= self.last_id:
            raise BadPayload(f"nothing was asked with id {header.req_id}")
        if question is None or question.id != header.req_id:
            self.late_messages += 1
            self._tracer.event("balloon.late_message", id=header.req_id)
            return
        question.messages += 1
        if question.messages > MAX_MESSAGES:
            raise BadPayload(f"more than {MAX_MESSAGES} messages in one answer")
        if header.cmd != question.command:
            raise BadPayload(f"command {question.command} answered as {header.cmd}")
        if header.flag == Flag.UNSUPPORTED:
            self._end(RequestStatus.UNSUPPORTED)
        elif question.command is Command.GET_UNUSED_PAGES:
            self._collect(question, header, payload)
        elif header.flag == Flag.DONE and not header.bmap_len:
            self._end(RequestStatus.ANSWERED)
        else:
            raise BadPayload(f"flag {header.flag}, bmap_len {header.bmap_len}: no answer")

    def _collect(self, question: _Request, header: bitmap.Header, payload: bytes) -> None:
        """Take in the pages of one message; without a bitmap it names none."""
        if header.flag not in (Flag.CONT, Flag.DONE):
            raise BadPayload(f"unknown flag {header.flag:#x}")
        if header.bmap_len:
            pages = bitmap.pages_of(header, payload)
            strays = pages.subtract(self._ram.pages)
            if strays:
                raise BadPayload(f"{strays.pages} of {pages.pages} pages are not RAM")
            question.pages = question.pages.union(pages)
        if header.flag == Flag.DONE:
            self._end(RequestStatus.ANSWERED)

    def _spoil(self, why: str) -> None:
        """What the driver says cannot be believed; nothing is lost where it was not asked yet."""
        if self._question is not None and self._question.id is not None:
            self._end(RequestStatus.INVALID_RESPONSE, why)

    def _end(self, ending: RequestStatus, why: str = "") -> None:
        """End the open question, if any; nobody sees the pages of half an answer."""
        question, self._question = self._question, None
        if question is None:
            return
        pages = question.pages if ending is RequestStatus.ANSWERED else PageRuns()
        self._tracer.event("balloon.question", command=question.command.name, ending=ending.value)
        question.on_answer(MiscResponse(ending, pages, why))
