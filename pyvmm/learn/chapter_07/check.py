# SPDX-License-Identifier: Apache-2.0
"""Check of chapter 7: buffers of one to six elements arrive whole, by one descriptor each.

A device that records its requests serves the queue of the exercise's `IndirectDriver`. Several
buffers are in flight at once, so tables must not share memory either.
"""

from __future__ import annotations

from typing import Any

from devices.testing import AnonymousRam, Board, RecordingTracer, VirtioDriver
from devices.testing.driver import NEEDS_RESET
from devices.virtio.device import VirtioDevice
from devices.virtio.queue import QueueSpec
from pyvmm.learn.checking import expect
from pyvmm_native.memory import GuestMemory
from pyvmm_native.ring import Chain

DATA_GPA = 16 << 20
"""Address of the buffers of the check."""
RESPONSE = b"done"
QUEUE_SIZE = 16


class RequestRecorder(VirtioDevice):
    """A device that keeps the readable part of each request and writes RESPONSE to the rest."""

    def __init__(self, memory: GuestMemory, tracer: RecordingTracer) -> None:
        queues = [QueueSpec("requestq", max_size=QUEUE_SIZE)]
        super().__init__(device_id=63, name="recorder", queues=queues, memory=memory, tracer=tracer)
        self.requests: list[tuple[bytes, int]] = []
        """(bytes received, room for the response in bytes) of each request."""

    def serve(self, queue: int, chain: Chain) -> int:
        """Record the request and respond to it."""
        self.requests.append((chain.readable, chain.writable_bytes))
        return chain.write(RESPONSE[: chain.writable_bytes])


class _Bench:
    """The exercise's driver on the queue of a `RequestRecorder`."""

    def __init__(self, exercise: Any) -> None:
        ram, self.tracer = AnonymousRam(), RecordingTracer()
        self.device = RequestRecorder(ram.memory, self.tracer)
        self.registers = VirtioDriver(Board(self.device, self.tracer)).start()
        self.queue = self.registers.queues[0]
        self.driver = exercise.IndirectDriver(self.queue)
        self.element = exercise.Element
        self.next_gpa = DATA_GPA

    def place(self, data: bytes) -> int:
        gpa, self.next_gpa = self.next_gpa, self.next_gpa + 4096
        self.queue.memory.write(gpa, data)
        return gpa

    def add(self, readable: list[bytes]) -> int:
        """Add a buffer of `readable` and one element for the response; return where that is."""
        elements = [self.element(self.place(data), len(data)) for data in readable]
        response_gpa = self.place(bytes(len(RESPONSE)))
        self.driver.add([*elements, self.element(response_gpa, len(RESPONSE), writable=True)])
        return response_gpa

    def serve(self) -> list[tuple[bytes, int]]:
        """Let the device serve the queue; return the requests that it received."""
        self.device.requests.clear()
        self.registers.notify(0)
        self.registers.board.serve()
        if self.registers.status & NEEDS_RESET:
            why = str(self.tracer.events[-1][1]["why"])
            expect(False, f"The device has set DEVICE_NEEDS_RESET: {why}.{_hint(why)}")
        return list(self.device.requests)


def _hint(why: str) -> str:
    if "NEXT and INDIRECT" in why:
        return (
            " A driver MUST NOT set both flags in one descriptor (VIRTIO 1.2, 2.7.5.3.1): which"
            " flags does the descriptor in the ring need?"
        )
    if "whole number" in why:
        return " The len of the descriptor in the ring is that of the table, in bytes (2.7.5.3)."
    return ""


def check(exercise: Any) -> None:
    """Check `IndirectDriver` of the module `exercise`."""
    _check_short_buffer(exercise)
    _check_long_buffers(exercise)
    _check_full_queue(exercise)


def _check_short_buffer(exercise: Any) -> None:
    bench = _Bench(exercise)
    data = bench.place(b"hello")
    bench.driver.add([bench.element(data, 5)])
    requests = bench.serve()
    expect(
        requests == [(b"hello", 0)],
        "A buffer of one device-readable element, b'hello', has not arrived: the device received"
        f" {requests}.",
    )


def _check_long_buffers(exercise: Any) -> None:
    for count in range(1, 6):
        bench = _Bench(exercise)
        pieces = [bytes([65 + i]) * (i + 1) for i in range(count)]
        response_gpa = bench.add(pieces)
        requests = bench.serve()
        sent = b"".join(pieces)
        expect(len(requests) == 1, f"One buffer was sent, and the device received {len(requests)}.")
        received, room = requests[0]
        expect(
            received == sent and room == len(RESPONSE),
            f"A buffer of {count + 1} elements has not arrived whole: the"
            f" device received {received!r} of {sent!r}, and {room} writable bytes of"
            f" {len(RESPONSE)}. Inside the table each descriptor but the last has NEXT, and `next`"
            " is the index of the following one in the table (VIRTIO 1.2, 2.7.5.3).",
        )
        response = bench.queue.memory.read(response_gpa, len(RESPONSE))
        expect(
            response == RESPONSE,
            f"The device has written {RESPONSE!r} into the writable element, and memory there"
            f" holds {response!r}: does its descriptor in the table have the right address?",
        )


def _check_full_queue(exercise: Any) -> None:
    bench = _Bench(exercise)
    sent = [b"%02d" % i + b"x" * i for i in range(QUEUE_SIZE)]
    for number, data in enumerate(sent):
        try:
            bench.add([data[:2], data[2:]] if data[2:] else [data])
        except IndexError:
            expect(
                False,
                f"The driver has no free descriptor after {number} buffers. The queue has"
                f" {QUEUE_SIZE}, and with an indirect table each buffer takes one of them, however"
                " many elements it has.",
            )
    received = [data for data, _ in bench.serve()]
    expect(
        received == sent,
        f"{QUEUE_SIZE} buffers were made available before the device looked. The first that"
        f" differs: {_first_difference(sent, received)}. A table belongs to its buffer until the"
        " device has returned that buffer; each needs memory of its own.",
    )


def _first_difference(sent: list[bytes], received: list[bytes]) -> str:
    for number, data in enumerate(sent):
        got = received[number] if number < len(received) else None
        if got != data:
            return f"number {number} was {data!r} and arrived as {got!r}"
    return "none"
