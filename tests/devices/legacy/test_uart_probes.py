# SPDX-License-Identifier: Apache-2.0
"""The 16550A under the probes of Linux's 8250 driver, and under arbitrary accesses."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.devices.legacy.uart_port import (
    DTR,
    ELSI,
    EMPTY,
    ERBFI,
    ETBEI,
    FCR,
    FIFO,
    IER,
    IIR,
    LCR,
    LOOP,
    LSR,
    MCR,
    MSR,
    NONE,
    OUT2,
    RBR,
    RTS,
    THR,
    UartPort,
)


def test_linux_identifies_a_16550a() -> None:
    """The steps of the 8250 driver's autoconfig(), which ends in PORT_16550A."""
    port = UartPort(mcr=0)
    port.write(IER, 0)
    assert port.read(IER) & 0x0F == 0
    port.write(IER, 0x0F)
    assert port.read(IER) & 0x0F == 0x0F
    port.write(IER, 0)
    port.write(MCR, LOOP | 0x0A)
    assert port.read(MSR) & 0xF0 == 0x90
    port.write(MCR, 0)
    port.write(LCR, 0xBF)
    assert port.read(2) != 0  # an EFR of 0 here would be a 16650
    port.write(FCR, 0)
    port.write(LCR, 0)
    port.write(FCR, FIFO)
    assert port.read(IIR) >> 6 == 3
    port.write(LCR, 0x80)
    assert port.read(2) != 0
    port.write(LCR, 0)
    port.write(FCR, FIFO | 0x20)
    assert port.read(IIR) & 0x20 == 0  # no 64-byte FIFO: not a 16750
    port.write(IER, 0x40)
    assert port.read(IER) & 0x40 == 0  # no UUE: not an XScale


def test_linux_measures_16_bytes_of_fifo() -> None:
    """size_fifo(): send 256 characters in loopback and count what arrived."""
    port = UartPort()
    port.write(FCR, FIFO | 0x06)
    port.write(MCR, LOOP)
    for count in range(256):
        port.write(THR, count)
    received = 0
    while port.read(LSR) & 1:
        assert port.read(RBR) == received
        received += 1
    assert received == 16


def test_linux_finds_no_transmitter_bugs() -> None:
    """serial8250_do_startup(): THRE must be raised by every enabling (else UART_BUG_THRE/TXEN)."""
    port = UartPort()
    for _ in range(3):
        port.write(IER, ETBEI)
        assert port.read(LSR) & 0x60 == 0x60
        assert port.iir == EMPTY
        port.write(IER, 0)


def test_linux_loses_no_input_while_it_sets_up_the_port() -> None:
    """Input that waits since before the boot; the accesses are those of Linux's 8250 driver."""
    port = UartPort(mcr=0)
    waiting = bytearray(range(1, 200))

    def send() -> None:
        del waiting[: port.uart.receive(bytes(waiting))]

    def clear_interrupts() -> None:
        for register in (LSR, RBR, IIR, MSR):
            port.read(register)

    def clear_fifos() -> None:
        for fcr in (FIFO, FIFO | 0x06, 0):
            port.write(FCR, fcr)

    port.uart.room_available.add(send)
    send()
    for _ in range(2):  # autoconfig(), serial8250_do_startup()
        clear_fifos()
        port.write(IER, 0)
        clear_interrupts()
    port.write(MCR, OUT2)
    port.write(IER, ETBEI)  # the test of UART_BUG_THRE
    port.write(IER, 0)
    clear_interrupts()
    port.write(IER, ERBFI | ELSI)  # serial8250_do_set_termios()
    port.write(FCR, FIFO)
    port.write(FCR, FIFO | 0x80)
    port.write(MCR, OUT2 | DTR | RTS)  # uart_port_dtr_rts()
    received = bytearray()
    while port.read(LSR) & 1:
        received.append(port.read(RBR))
    assert received == bytes(range(1, 200))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["read", "write", "receive"]),
            st.integers(0, 7),
            st.sampled_from([1, 1, 1, 2, 4]),
            st.integers(0, 0xFFFF_FFFF),
        ),
        max_size=60,
    )
)
def test_the_line_is_high_exactly_while_an_interrupt_is_pending_and_the_gate_is_open(
    steps: list[tuple[str, int, int, int]],
) -> None:
    port = UartPort()
    for action, register, size, value in steps:
        if action == "read":
            assert 0 <= port.uart.read(register, size) < 1 << (8 * size)
        elif action == "write":
            port.uart.write(register, size, value & (1 << (8 * size)) - 1)
        else:
            port.uart.receive(value.to_bytes(4, "little"))
        gate_open = port.read(MCR) & (OUT2 | LOOP) == OUT2
        level = port.level
        assert level == (gate_open and port.iir != NONE)
