# SPDX-License-Identifier: Apache-2.0
"""The console's queue, and the UART accesses that need no model."""

from __future__ import annotations

import threading

import pytest

from devices.legacy.uart import Uart16550
from pyvmm.trace.stream import events_of
from pyvmm.trace.tracer import EventTracer
from pyvmm_native.serial import UNLIMITED, ByteQueue, SerialFastPath

THR, IER, LCR, MCR, LSR, SCR = 0, 1, 3, 4, 5, 7
FCR = 2
PORT = 0x3F8
LIMIT_BYTES = 100


class UnusedLine:
    def set_level(self, level: bool) -> None:
        pass


class Console:
    """A UART, its fast path and the queue that both write to."""

    def __init__(self) -> None:
        self.firsts = 0
        self.queue = ByteQueue(self._first, LIMIT_BYTES)
        self.fast_path = SerialFastPath(self.queue, PORT)
        self.uart = Uart16550(UnusedLine(), self.queue.put, self.fast_path)

    def _first(self) -> None:
        self.firsts += 1


def test_an_access_is_the_same_event_on_the_fast_path_and_in_the_model() -> None:
    tracer = EventTracer()
    queue = ByteQueue(lambda: None, LIMIT_BYTES)
    fast_path = SerialFastPath(queue, PORT)
    uart = Uart16550(UnusedLine(), queue.put, fast_path, tracer.quiet)
    tracer.start()
    uart.write(THR, 1, 0x41)
    uart.read(LSR, 1)
    by_model = tracer.native.take()
    assert fast_path.write(THR, 0x41)
    assert fast_path.read(LSR) == 0x60
    by_fast_path = tracer.stop()
    assert by_model is not None
    assert by_fast_path is not None
    assert [event[2:] for event in events_of(by_fast_path)] == [
        event[2:] for event in events_of(by_model)
    ]
    assert fast_path.write(THR, 0x42)


def test_take_returns_all_bytes_in_order() -> None:
    queue = ByteQueue(lambda: None, LIMIT_BYTES)
    text = bytes(range(256)) * 100
    for start in range(0, len(text), 7):
        queue.put(text[start : start + 7])
    assert len(queue) == len(text)
    assert queue.take() == text
    assert len(queue) == 0
    assert queue.take() == b""


def test_only_the_first_bytes_of_a_batch_call_on_nonempty() -> None:
    console = Console()
    console.queue.put(b"")
    assert console.firsts == 0
    for _ in range(3):
        console.queue.put(b"a")
        console.queue.put(b"b")
        console.queue.take()
    assert console.firsts == 3


def test_on_nonempty_may_take() -> None:
    taken = []
    queue = ByteQueue(lambda: taken.append(queue.take()), LIMIT_BYTES)
    queue.put(b"a")
    queue.put(b"b")
    assert taken == [b"a", b"b"]


def test_an_exception_of_on_nonempty_propagates_and_the_bytes_stay() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    queue = ByteQueue(fail, LIMIT_BYTES)
    with pytest.raises(ZeroDivisionError):
        queue.put(b"a")
    assert queue.take() == b"a"


def test_a_closed_queue_drops_bytes() -> None:
    console = Console()
    console.queue.put(b"abc")
    console.queue.close()
    console.queue.put(b"def")
    assert not console.fast_path.write(THR, 0x41)
    assert console.queue.take() == b""
    assert console.firsts == 1


def test_the_first_character_of_a_batch_goes_to_the_model() -> None:
    console = Console()
    assert not console.fast_path.write(THR, ord("a"))
    console.uart.write(THR, 1, ord("a"))
    assert console.firsts == 1
    assert console.fast_path.write(THR, ord("b"))
    console.uart.write(THR, 1, ord("c"))
    assert console.fast_path.write(THR, ord("d"))
    assert console.queue.take() == b"abcd"
    assert console.firsts == 1


def test_characters_beyond_the_limit_go_to_the_model() -> None:
    console = Console()
    console.uart.write(THR, 1, 0)
    served = 0
    while console.fast_path.write(THR, 0):
        served += 1
    assert len(console.queue) == served + 1 == LIMIT_BYTES
    console.uart.write(THR, 1, 0)  # is not lost
    assert len(console.queue) == LIMIT_BYTES + 1


def test_with_interrupts_only_the_first_character_of_a_batch_goes_to_the_model() -> None:
    console = Console()
    console.queue.put(b"-")
    console.uart.write(FCR, 1, 1)
    console.uart.write(IER, 1, 2)
    for _ in range(2):
        assert not console.fast_path.write(THR, 0)
        console.uart.write(THR, 1, 0)
        assert [console.fast_path.write(THR, 0) for _ in range(16)] == [True] * 15 + [False]
        console.uart.write(THR, 1, 0)
        assert console.fast_path.write(THR, 0)
        assert (
            console.fast_path.read(LSR) == 0x60
        )  # a read of LSR: the next character is a first one again


@pytest.mark.parametrize(("register", "value"), [(LCR, 0x80), (MCR, 0x10)], ids=["DLAB", "loop"])
def test_writes_that_send_no_character_go_to_the_model(register: int, value: int) -> None:
    console = Console()
    console.queue.put(b"-")
    console.uart.write(register, 1, value)
    assert not console.fast_path.write(THR, 0x41)
    console.uart.write(register, 1, 0)
    assert console.fast_path.write(THR, 0x41)
    assert console.queue.take() == b"-A"


def test_line_status_is_always_current() -> None:
    console = Console()
    console.uart.write(MCR, 1, 0x02)  # RTS: ready to receive
    assert console.fast_path.read(LSR) == 0x60
    console.uart.receive(b"x")
    assert console.fast_path.read(LSR) == 0x61
    console.uart.read(THR, 1)
    assert console.fast_path.read(LSR) == 0x60


def test_an_overrun_is_reported_once_by_the_model() -> None:
    console = Console()
    console.uart.write(MCR, 1, 0x10)
    console.uart.write(THR, 1, 1)
    console.uart.write(THR, 1, 2)
    assert console.fast_path.read(LSR) is None
    assert console.uart.read(LSR, 1) == 0x63
    assert console.fast_path.read(LSR) == 0x61


def test_other_registers_go_to_the_model() -> None:
    console = Console()
    console.queue.put(b"-")
    assert console.fast_path.thr_credits == UNLIMITED
    assert all(console.fast_path.read(register) is None for register in range(8) if register != LSR)
    assert not any(console.fast_path.write(register, 0) for register in range(1, 8))


def test_concurrent_threads_lose_no_bytes() -> None:
    """Two threads put, two use the fast path, one takes."""
    each, queue = 20_000, ByteQueue(lambda: None, 1 << 20)
    fast_path = SerialFastPath(queue, PORT)
    fast_path.thr_credits = UNLIMITED

    def put() -> None:
        for _ in range(each):
            queue.put(b"pp")

    def write() -> None:
        written = 0
        while written < each:
            written += fast_path.write(THR, ord("s"))

    queue.put(b"-")
    writers = [threading.Thread(target=work) for work in (put, put, write, write)]
    for writer in writers:
        writer.start()
    got = bytearray()
    while any(writer.is_alive() for writer in writers):
        got += queue.take()
        queue.put(b"-")
    got += queue.take()
    assert got.count(b"p") == 4 * each
    assert got.replace(b"-", b"").count(b"s") == 2 * each
    assert len(got) - got.count(b"-") == 6 * each
