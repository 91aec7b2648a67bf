# SPDX-License-Identifier: Apache-2.0
"""Saving and restoring the UART: after any accesses, the new chip behaves like the old one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from devices.legacy.uart import Uart16550
from devices.testing.states import restores, transfer_state
from devices.testing.strategies import corrupted


class ObservedUart:
    """A UART, the characters it sent and its interrupt line."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.level = False
        self.changes = 0
        self.uart = Uart16550(self, self.sent.extend)

    def set_level(self, level: bool) -> None:
        self.level = level
        self.changes += 1

    def do(self, register: int, value: int | bytes | None) -> tuple[object, ...]:
        """Read, write or receive; return everything that can be observed."""
        seen: object = None
        if isinstance(value, bytes):
            seen = self.uart.receive(value)
        elif value is None:
            seen = self.uart.read(register, 1)
        else:
            self.uart.write(register, 1, value)
        return seen, self.level, self.changes, bytes(self.sent)


ACTIONS = st.lists(
    st.tuples(
        st.integers(0, 7),
        st.none()
        | st.binary(min_size=1, max_size=20)
        | st.integers(0, 255)
        | st.sampled_from([0x01, 0x0F, 0x08, 0x18, 0xC1, 0x80, 0x03]),
    ),
    max_size=30,
)


@given(ACTIONS, ACTIONS)
def test_a_restored_uart_behaves_like_the_saved_one(
    before: list[tuple[int, int | bytes | None]], after: list[tuple[int, int | bytes | None]]
) -> None:
    old, new = ObservedUart(), ObservedUart()
    for action in before:
        old.do(*action)
    transfer_state(old.uart, new.uart)
    assert (new.level, new.changes) == (old.level, int(old.level)), "at most one edge"
    new.sent[:] = old.sent
    new.changes = old.changes
    old.uart._begin_transmission()  # the progress of a transmission is not saved
    assert [new.do(*action) for action in after] == [old.do(*action) for action in after]


@given(ACTIONS, st.data())
def test_hostile_states_are_refused_and_change_nothing(
    actions: list[tuple[int, int | bytes | None]], data: st.DataObject
) -> None:
    port = ObservedUart()
    for action in actions:
        port.do(*action)
    state = data.draw(corrupted(port.uart.save_state()))
    if restores(port.uart, state):
        assert port.uart.save_state() == state


def test_the_interrupt_line_is_steady_while_a_uart_is_restored() -> None:
    old, new = ObservedUart(), ObservedUart()
    for register, value in ((4, 0x0A), (0, b"x")):
        old.do(register, value)  # OUT2 and RTS, then a character, with all interrupts disabled
    transfer_state(old.uart, new.uart)
    assert new.changes == 0
    assert new.do(0, None)[0] == ord("x")


def test_a_restored_uart_interrupts_a_driver_that_waits_for_the_transmitter() -> None:
    old, new = ObservedUart(), ObservedUart()
    for register, value in ((4, 0x08), (2, 0x01), (1, 0x02), (2, None)):
        old.do(register, value)  # OUT2, FIFOs, the transmitter's interrupt, which is then read
    transfer_state(old.uart, new.uart)
    assert not new.level
    new.do(0, ord("x"))
    assert new.level
    assert bytes(new.sent) == b"x"
