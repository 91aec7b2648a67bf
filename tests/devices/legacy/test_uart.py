# SPDX-License-Identifier: Apache-2.0
"""The 16550A: one test for each row of the data sheet's interrupt table, and the registers."""

from __future__ import annotations

import pytest

from tests.devices.legacy.uart_port import (
    DATA,
    DTR,
    EDSSI,
    ELSI,
    EMPTY,
    ERBFI,
    ETBEI,
    FCR,
    FIFO,
    IER,
    IIR,
    LCR,
    LINE,
    LOOP,
    LSR,
    MCR,
    MODEM,
    MSR,
    NONE,
    OUT1,
    OUT2,
    RBR,
    RTS,
    SCR,
    THR,
    TIMEOUT,
    UartPort,
)


# --- After reset --------------------------------------------------------------------------------
def test_reset_values() -> None:
    port = UartPort(mcr=0)
    values = [port.read(register) for register in range(8)]
    assert values == [0, 0, NONE, 0, 0, 0x60, 0xB0, 0]
    assert port.levels == []


# --- Received data available, and the character time-out ----------------------------------------
def test_received_data_in_16450_mode_is_cleared_by_reading_rbr() -> None:
    port = UartPort(ier=ERBFI)
    assert port.uart.receive(b"ab") == 1
    assert port.level
    assert port.iir == DATA
    assert port.read(LSR) == 0x61
    assert port.read(RBR) == ord("a")
    assert port.iir == NONE
    assert not port.level


@pytest.mark.parametrize(("select", "trigger"), [(0x00, 1), (0x40, 4), (0x80, 8), (0xC0, 14)])
def test_received_data_at_the_trigger_level_then_time_out_below_it(
    select: int, trigger: int
) -> None:
    port = UartPort(fcr=FIFO | select, ier=ERBFI)
    port.uart.receive(bytes(trigger))
    assert port.iir == DATA
    for _ in range(trigger - 1):
        port.read(RBR)
        assert port.iir == TIMEOUT  # characters are waiting and no new one arrives
        assert port.level
    port.read(RBR)
    assert port.iir == NONE
    assert not port.level


def test_time_out_is_cleared_only_when_the_fifo_is_empty() -> None:
    port = UartPort(fcr=FIFO | 0xC0, ier=ERBFI)
    port.uart.receive(b"xy")
    assert port.iir == TIMEOUT
    assert port.iir == TIMEOUT  # reading IIR does not clear it
    assert port.read(RBR) == ord("x")
    assert port.iir == TIMEOUT
    assert port.read(RBR) == ord("y")
    assert not port.level


def test_clearing_the_receiver_fifo_clears_the_interrupt() -> None:
    port = UartPort(fcr=FIFO, ier=ERBFI)
    port.uart.receive(b"abc")
    port.write(FCR, FIFO | 0x02)
    assert not port.level
    assert port.read(LSR) == 0x60


@pytest.mark.parametrize("fcr", [0, FIFO], ids=["enabling", "disabling"])
def test_changing_the_fifo_mode_clears_the_receiver(fcr: int) -> None:
    port = UartPort(fcr=fcr, ier=ERBFI)
    port.uart.receive(b"a")
    port.write(FCR, fcr)
    assert port.level  # the same mode again: nothing is lost
    port.write(FCR, fcr ^ FIFO)
    assert not port.level


def test_nothing_interrupts_unless_enabled() -> None:
    port = UartPort(fcr=FIFO)
    port.uart.receive(b"abc")
    port.write(THR, 0x41)
    assert port.iir == NONE
    assert port.levels == []
    port.write(IER, ERBFI)
    assert port.level


# --- Transmitter holding register empty ---------------------------------------------------------
def test_enabling_thre_while_empty_interrupts_and_reading_iir_clears_it() -> None:
    port = UartPort(ier=ETBEI)
    assert port.level
    assert port.iir == EMPTY
    assert not port.level
    assert port.iir == NONE


def test_thre_interrupts_again_when_reenabled_but_not_when_rewritten() -> None:
    port = UartPort(ier=ETBEI)
    assert port.iir == EMPTY
    port.write(IER, ETBEI)
    assert port.iir == NONE
    port.write(IER, 0)
    port.write(IER, ETBEI)
    assert port.iir == EMPTY


def test_writing_thr_clears_thre_until_the_character_is_sent() -> None:
    port = UartPort(ier=ETBEI)
    port.levels.clear()
    port.levels.append(True)
    port.write(THR, 0x41)
    assert port.levels == [True, False, True]  # an edge-triggered input sees a new interrupt
    assert port.sent == b"A"
    assert port.iir == EMPTY


@pytest.mark.parametrize(("fcr", "edges"), [(0, 40), (FIFO, 3)], ids=["16450", "FIFO"])
def test_each_batch_of_characters_interrupts_once(fcr: int, edges: int) -> None:
    port = UartPort(fcr=fcr, ier=ETBEI)
    before = len(port.levels)
    for character in range(40):
        port.write(THR, character)
    assert port.levels[before:] == [False, True] * edges


@pytest.mark.parametrize("register", [LSR, IIR, IER])
def test_an_access_to_iir_lsr_or_ier_ends_a_batch_of_characters(register: int) -> None:
    port = UartPort(fcr=FIFO, ier=ETBEI)
    for _ in range(3):
        before = len(port.levels)
        if register == IER:
            port.write(IER, ETBEI)
        else:
            port.read(register)
        port.write(THR, 0x41)
        port.write(THR, 0x42)
        assert port.levels[before:] == [False, True]


def test_reading_iir_clears_it_only_when_it_is_the_one_reported() -> None:
    port = UartPort(ier=ETBEI | ERBFI)
    port.uart.receive(b"a")
    assert port.iir == DATA
    port.read(RBR)
    assert port.iir == EMPTY
    assert port.iir == NONE


# --- Receiver line status -----------------------------------------------------------------------
@pytest.mark.parametrize(("fcr", "capacity", "kept"), [(0, 1, 1), (FIFO, 16, 0)])
def test_overrun_is_cleared_by_reading_lsr(fcr: int, capacity: int, kept: int) -> None:
    port = UartPort(fcr=fcr, mcr=LOOP, ier=ELSI)
    for character in range(capacity + 1):
        port.write(THR, character)
    assert port.iir == LINE
    assert port.read(LSR) == 0x63
    assert port.iir == NONE
    assert port.read(LSR) == 0x61
    assert port.read(RBR) == kept  # 16450: overwritten; FIFO: the last character is lost


def test_an_overrun_holds_the_line_until_lsr_is_read() -> None:
    port = UartPort(mcr=LOOP, ier=ELSI)
    port.write(THR, 1)
    port.write(THR, 2)
    port.write(MCR, OUT2)  # out of loopback: the gate opens
    assert port.level
    port.read(LSR)
    assert not port.level


# --- Modem status -------------------------------------------------------------------------------
def test_modem_status_interrupt_is_cleared_by_reading_msr() -> None:
    port = UartPort(ier=EDSSI)
    port.write(MCR, LOOP)  # the terminal's CTS, DSR and DCD are cut off
    assert port.iir == MODEM
    assert port.read(MSR) == 0x0B
    assert port.iir == NONE
    assert port.read(MSR) == 0


@pytest.mark.parametrize(
    ("control", "status"),
    [(RTS, 0x11), (DTR, 0x22), (OUT1, 0x40), (OUT2, 0x88)],
    ids=["RTS to CTS", "DTR to DSR", "OUT1 to RI", "OUT2 to DCD"],
)
def test_loopback_wires_and_their_deltas(control: int, status: int) -> None:
    port = UartPort(mcr=LOOP)
    port.read(MSR)
    port.write(MCR, LOOP | control)
    assert port.read(MSR) == status  # RI: only its trailing edge is a delta
    assert port.read(MSR) == status & 0xF0
    port.write(MCR, LOOP)
    assert port.read(MSR) == (status & 0x0F or 0x04)


# --- Priorities ---------------------------------------------------------------------------------
def test_interrupts_are_reported_by_priority() -> None:
    port = UartPort(mcr=LOOP | RTS | OUT2, ier=ERBFI | ETBEI | ELSI | EDSSI)
    port.write(THR, 1)
    port.write(THR, 2)
    seen = []
    for acknowledge in (LSR, RBR, None, MSR):
        seen.append(port.iir)
        if acknowledge is not None:
            port.read(acknowledge)
    assert [*seen, port.iir] == [LINE, DATA, EMPTY, MODEM, NONE]


# --- The PC's interrupt gate --------------------------------------------------------------------
def test_out2_gates_the_interrupt_and_loopback_closes_the_gate() -> None:
    port = UartPort(mcr=RTS, ier=ERBFI)
    port.uart.receive(b"a")
    assert port.iir == DATA
    assert not port.level
    port.write(MCR, OUT2)
    assert port.level
    port.write(MCR, OUT2 | LOOP)
    assert not port.level


# --- Registers ----------------------------------------------------------------------------------
def test_dlab_selects_the_divisor_latch() -> None:
    port = UartPort()
    port.write(LCR, 0x83)
    port.write(RBR, 0x35)
    port.write(IER, 0xD3)
    assert (port.read(RBR), port.read(IER)) == (0x35, 0xD3)
    port.write(LCR, 0x03)
    assert (port.read(RBR), port.read(IER)) == (0, 0)
    assert port.sent == b""


def test_unused_bits_read_as_zero() -> None:
    port = UartPort(mcr=0)
    port.write(IER, 0xFF)
    port.write(MCR, 0xFF)
    port.write(LSR, 0)
    port.write(SCR, 0xA5)
    assert (port.read(IER), port.read(MCR), port.read(LSR), port.read(SCR)) == (15, 31, 0x60, 0xA5)


def test_iir_shows_whether_the_fifos_are_enabled() -> None:
    port = UartPort()
    assert port.read(IIR) == 0x01
    port.write(FCR, FIFO)
    assert port.read(IIR) == 0xC1
    port.write(FCR, 0xC0)  # the trigger level counts only together with FIFO enable
    assert port.read(IIR) == 0x01


# --- Input from outside -------------------------------------------------------------------------
def test_receive_accepts_what_fits_and_room_available_follows_once() -> None:
    port = UartPort(fcr=FIFO)
    assert port.uart.receive(bytes(range(20))) == 16
    assert not port.uart.can_receive
    for expected in range(15):
        assert port.read(RBR) == expected
    assert port.rooms == 0
    assert port.read(RBR) == 15
    assert port.rooms == 1
    assert port.uart.receive(b"abc") == 3
    port.read(RBR)
    port.read(RBR)
    port.read(RBR)
    assert port.rooms == 1  # nothing was refused


def test_room_is_announced_once_even_if_nothing_follows() -> None:
    port = UartPort()
    assert port.uart.receive(b"ab") == 1
    for _ in range(3):
        port.read(RBR)
    assert port.rooms == 1


def test_a_listener_of_room_available_may_receive_at_once() -> None:
    port = UartPort(ier=ERBFI)
    rest = bytearray(b"hello")

    def refill() -> None:
        del rest[: port.uart.receive(bytes(rest))]

    port.uart.room_available.add(refill)
    refill()
    line = bytes(port.read(RBR) for _ in range(5))
    assert line == b"hello"
    assert not port.level


def test_loopback_blocks_outside_input_until_it_ends() -> None:
    port = UartPort(fcr=FIFO, mcr=LOOP)
    assert port.uart.receive(b"a") == 0
    port.write(THR, 0x42)
    assert port.sent == b""
    assert port.read(RBR) == 0x42
    assert port.rooms == 0
    port.write(MCR, OUT2 | RTS)
    assert port.rooms == 1


@pytest.mark.parametrize(("register", "value"), [(MCR, RTS), (IER, ERBFI)], ids=["RTS", "ERBFI"])
def test_input_waits_until_the_driver_is_ready(register: int, value: int) -> None:
    port = UartPort(fcr=FIFO, mcr=OUT2)
    assert port.uart.receive(b"a") == 0
    assert port.read(LSR) == 0x60
    assert (port.rooms, port.uart.can_receive) == (0, False)
    port.write(register, value)
    assert port.rooms == 1
    assert port.uart.receive(b"a") == 1
