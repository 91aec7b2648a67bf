# SPDX-License-Identifier: Apache-2.0
"""The KVM_RUN loop's fast path to the UART and its model behave as one chip.

The same accesses go to two UARTs. One has every access served by its model. The other is served as
in the KVM_RUN loop: by the fast path if it can, else by the model. Values read, characters sent and
changes of the interrupt are the same.
"""

from __future__ import annotations

from hypothesis import event, given, settings
from hypothesis import strategies as st

from devices.legacy.uart import Uart16550
from pyvmm_native.serial import ByteQueue, SerialFastPath

RBR, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)
PORT = 0x3F8
QUEUE_BYTES = 40
ETBEI, LOOP, OUT2, DLAB, FIFO = 0x02, 0x10, 0x08, 0x80, 0x01


class Chip:
    """A UART, its output and its interrupt levels, served by the fast path if `fast`."""

    def __init__(self, *, fast: bool) -> None:
        self.fast = fast
        self.seen: list[int | bool | str] = []
        self.sent = b""
        self.served = 0
        self.queue = ByteQueue(lambda: None, QUEUE_BYTES)
        self.fast_path = SerialFastPath(self.queue, PORT)
        self.uart = Uart16550(self, self.queue.put, self.fast_path)
        self.uart.room_available.add(lambda: self.seen.append("room"))

    def set_level(self, level: bool) -> None:
        self.seen.append(level)

    def read(self, register: int, value: int) -> None:
        served = self.fast_path.read(register) if self.fast else None
        self.served += served is not None
        self.seen.append(self.uart.read(register, 1) if served is None else served)

    def write(self, register: int, value: int) -> None:
        if self.fast and self.fast_path.write(register, value):
            self.served += 1
        else:
            self.uart.write(register, 1, value)

    def receive(self, register: int, value: int) -> None:
        self.seen.append(self.uart.receive(bytes([value]) * register))

    def take(self, register: int, value: int) -> None:
        self.sent += self.queue.take()


FREELY = st.tuples(
    st.sampled_from(["read", "write", "receive", "take"]), st.integers(0, 7), st.integers(0, 255)
)
LIKE_A_DRIVER = st.sampled_from(
    [
        ("read", LSR, 0),
        ("write", RBR, ord("x")),
        ("write", RBR, ord("y")),
        ("read", IIR, 0),
        ("write", IER, ETBEI),
        ("write", IER, 0),
        ("write", MCR, OUT2),
        ("write", MCR, LOOP),
        ("write", LCR, DLAB),
        ("write", LCR, 3),
        ("write", IIR, FIFO),
        ("receive", 3, 7),
        ("take", 0, 0),
    ]
)
BURST = st.integers(1, 40).map(lambda count: [("write", RBR, ord("b"))] * count)
STEPS = st.lists(BURST | st.lists(FREELY | LIKE_A_DRIVER, max_size=20), max_size=12)


@settings(max_examples=400, deadline=None)
@given(STEPS)
def test_the_fast_path_and_the_model_behave_alike(
    groups: list[list[tuple[str, int, int]]],
) -> None:
    chips = Chip(fast=True), Chip(fast=False)
    for group in groups:
        for action, register, value in group:
            for chip in chips:
                getattr(chip, action)(register, value)
            assert chips[0].seen == chips[1].seen
    for chip in chips:
        chip.take(0, 0)
    assert chips[0].sent == chips[1].sent
    event(f"the fast path served {min(chips[0].served, 10)} or more")
