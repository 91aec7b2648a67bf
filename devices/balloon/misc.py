# SPDX-License-Identifier: Apache-2.0
"""The misc queue of the proposal of 2016: the device requests, the driver responds.

The queue is called misc in the bitmap dialect and host request queue in hybrid and ranges.

The driver keeps one device-writable buffer on the queue. To make a request, the device fills in
16 bytes, little-endian, and returns the buffer:

    u16 cmd          a `MiscCommand`
    u16 reserved[3]  0
    u64 param        id of the request

The driver responds on the same queue with device-readable messages in the format of the dialect,
whose command and id are those of the request: any number with flag CONT and a last one with DONE or
UNSUPPORTED. Then it makes the request buffer available again. A request buffer is device-writable
and a message device-readable, so the two cannot be confused.

One request is outstanding at a time, and only messages with its id are accepted. Ids increase,
across resets too, so a message that is late, sent twice, or for a cancelled request has an older
id; it is counted and otherwise ignored. After the largest id that a message can hold they start
again at 1: in the dialects with ids of 16 bits, an id comes back after 65,535 requests. Any other
bad message makes the whole response invalid: a driver that is wrong about one page is not trusted
about the others. The memory and work that a driver can cause are bounded by RAM, the length of a
message and `MAX_MESSAGES`.

Pages that the guest reports as unused may be in use again before the response arrives. A copy of
memory that has logged writes since before the request may leave them out. Nothing is ever discarded
because of a response.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import Enum, IntEnum
from functools import reduce
from typing import NamedTuple

from devices.balloon.dialects import CompleteBuffer
from devices.balloon.messages import Message, ResponseFormat
from devices.balloon.queue_handler import QueueHandler
from devices.errors import BadPayload
from devices.ports import GuestRam, Tracer
from devices.state import Fields, Payload, Restore
from devices.virtio.queue import check_in_flight, save_in_flight
from pyvmm_native.ring import Chain, SplitQueue
from pyvmm_native.runs import PageRuns

REQUEST = struct.Struct("<H6xQ")
"""A request on the wire, 16 bytes: command and id."""

MAX_MESSAGES = 8192
"""Most messages of one response. In 16 GiB at most every other page is a free block of its own; our
driver then needs 5,500 messages of records if it is short of memory for longer ones."""


class MiscCommand(IntEnum):
    """Requests. The proposal of 2016 has the first; the others are our own driver's."""

    GET_UNUSED_PAGES = 0
    DROP_CACHE = 1
    SYNC = 2


class Flag(IntEnum):
    """Place of a message in its response; a value, not a bit number."""

    CONT = 0
    DONE = 1
    UNSUPPORTED = 2
    """The driver does not know the command; our own driver's, others do not respond."""


class RequestStatus(Enum):
    """Outcome of a request; a cancelled one has none."""

    COMPLETE = "complete"
    UNSUPPORTED = "unsupported"
    INVALID_RESPONSE = "invalid response"
    RESET = "reset"


class MiscResponse(NamedTuple):
    """The outcome of a request."""

    status: RequestStatus
    pages: PageRuns
    """Pages that were unused when the guest looked, for GET_UNUSED_PAGES; else empty."""
    why: str = ""
    """The violation of an INVALID_RESPONSE."""


OnResponse = Callable[[MiscResponse], None]
"""Called once with the outcome of a request, under the device lock."""


class _OutstandingRequest:
    def __init__(self, command: MiscCommand, on_response: OnResponse) -> None:
        self.command = command
        self.on_response = on_response
        self.id: int | None = None
        """None until the request is sent to the driver."""
        self.messages = 0
        self._parts: list[PageRuns] = []

    def add(self, pages: PageRuns) -> None:
        """Collect the pages of a message.

        Messages are merged with earlier ones of up to twice their size. So each run is copied a few
        times, not once for each message, and all parts together are less than twice the largest.
        """
        while self._parts and len(self._parts[-1]) <= 2 * len(pages):
            pages = pages.union(self._parts.pop())
        self._parts.append(pages)

    def pages(self) -> PageRuns:
        """Return all pages collected."""
        return reduce(PageRuns.union, reversed(self._parts), PageRuns())


class MiscQueue(QueueHandler):
    """Makes one request at a time and collects the response, in the format of a dialect.

    A dialect without `responses` has no such queue: nothing is ever served.
    """

    def __init__(
        self,
        responses: ResponseFormat | None,
        ram: GuestRam,
        complete: CompleteBuffer,
        tracer: Tracer,
    ) -> None:
        self._responses = responses
        self.max_readable_bytes = responses.max_bytes if responses else 0
        self._ram = ram
        self._complete = complete
        self._tracer = tracer
        self._buffer: Chain | None = None
        self._request: _OutstandingRequest | None = None
        self.last_id = 0
        """Number of requests sent to the driver: the id of the last one, unless ids are shorter."""
        self.late_messages = 0
        """Messages for a request that had already ended, since the device was created."""

    # Called by the machine.

    def request(self, command: MiscCommand, on_response: OnResponse) -> None:
        """Send a request as soon as the driver provides its buffer, which may be now.

        `on_response` is called once, while the device serves a buffer or is reset, unless the
        request is cancelled first. The previous request must have ended.
        """
        assert self._request is None, "one request at a time"
        self._request = _OutstandingRequest(command, on_response)
        if self._buffer is not None:
            buffer, self._buffer = self._buffer, None
            self._complete(buffer, self._fill_in(buffer, self._request))

    def cancel(self) -> bool:
        """Cancel the outstanding request, if any; return whether it had been sent."""
        request, self._request = self._request, None
        return request is not None and request.id is not None

    # Called by the device.

    def serve(self, chain: Chain) -> int | None:
        """Take a request buffer or a message."""
        if chain.writable_bytes:
            return self._serve_request_buffer(chain)
        self._serve_message(chain.readable)
        return 0

    def on_bad_payload(self, chain: Chain, error: BadPayload) -> int:
        """Fail the outstanding request if the buffer was a message; return the buffer."""
        sent = self._request is not None and self._request.id is not None
        if sent and not chain.writable_bytes:
            self._end(RequestStatus.INVALID_RESPONSE, str(error))
        return 0

    def reset(self) -> None:
        """Drop the request buffer and end the outstanding request."""
        self._buffer = None
        self._end(RequestStatus.RESET)

    def save_state(self) -> Payload:
        """Return the counters, the last id and the request buffer.

        The outstanding request belongs to this process; its id makes the response a late message.
        """
        return {
            "late_messages": self.late_messages,
            "last_id": self.last_id,
            "buffer": save_in_flight(self._buffer),
        }

    def check_state(self, fields: Fields, ring: SplitQueue | None) -> Restore:
        """As `QueueHandler.check_state`."""
        late_messages, last_id = fields.counter("late_messages"), fields.counter("last_id")
        buffer = next(iter(check_in_flight(fields, "buffer", ring, at_most=1)), None)
        if buffer is not None and buffer.writable_bytes < REQUEST.size:
            raise fields.error("buffer", f"of {buffer.writable_bytes} bytes is too small")

        def restore() -> None:
            self.late_messages, self.last_id = late_messages, last_id
            self._buffer = buffer
            self._request = None

        return restore

    def _serve_request_buffer(self, chain: Chain) -> int | None:
        """Use the buffer for a request that waits for it, or keep it for the next one."""
        if chain.readable_bytes:
            raise BadPayload("a buffer cannot be both a message and a request buffer")
        if chain.writable_bytes < REQUEST.size:
            raise BadPayload(f"{chain.writable_bytes} bytes are too few for a request")
        if self._buffer is not None:
            raise BadPayload("a request buffer is already in flight")
        if self._request is not None and self._request.id is None:
            return self._fill_in(chain, self._request)
        self._buffer = chain
        return None

    def _fill_in(self, buffer: Chain, request: _OutstandingRequest) -> int:
        assert self._responses is not None
        self.last_id += 1
        request.id = (self.last_id - 1) % self._responses.max_id + 1
        return buffer.write(REQUEST.pack(request.command, request.id))

    def _serve_message(self, payload: bytes) -> None:
        assert self._responses is not None
        message = self._responses.read(payload)
        request = self._request
        if not 0 < message.id <= self.last_id:
            raise BadPayload(f"no request has had the id {message.id}")
        if request is None or request.id != message.id:
            self.late_messages += 1
            self._tracer.event("balloon.late_message", id=message.id)
            return
        request.messages += 1
        if request.messages > MAX_MESSAGES:
            raise BadPayload(f"more than {MAX_MESSAGES} messages in one response")
        if message.cmd != request.command:
            raise BadPayload(f"response of command {message.cmd} to command {request.command}")
        if message.flag == Flag.UNSUPPORTED:
            self._end(RequestStatus.UNSUPPORTED)
        elif request.command is MiscCommand.GET_UNUSED_PAGES:
            self._collect(request, message)
        elif message.flag == Flag.DONE and not message.data_bytes:
            self._end(RequestStatus.COMPLETE)
        else:
            raise BadPayload(
                f"flag {message.flag}, {message.data_bytes} bytes of pages: not a response"
            )

    def _collect(self, request: _OutstandingRequest, message: Message) -> None:
        """Add the pages of one message; one that is a header alone has none."""
        if message.flag not in (Flag.CONT, Flag.DONE):
            raise BadPayload(f"unknown flag {message.flag:#x}")
        if message.data_bytes:
            pages = message.decode()
            strays = pages.subtract(self._ram.pages)
            if strays:
                raise BadPayload(f"{strays.pages} of {pages.pages} pages are not RAM")
            request.add(pages)
        if message.flag == Flag.DONE:
            self._end(RequestStatus.COMPLETE)

    def _end(self, status: RequestStatus, why: str = "") -> None:
        """End the outstanding request, if any; an incomplete response yields no pages."""
        request, self._request = self._request, None
        if request is None:
            return
        pages = request.pages() if status is RequestStatus.COMPLETE else PageRuns()
        self._tracer.event("balloon.misc", command=request.command.name, status=status.value)
        request.on_response(MiscResponse(status, pages, why))
