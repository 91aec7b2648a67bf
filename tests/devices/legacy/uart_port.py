# SPDX-License-Identifier: Apache-2.0
"""A 16550A for tests, with its registers' names and a record of its output."""

from __future__ import annotations

from devices.legacy.uart import Uart16550

RBR, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)
THR, FCR = RBR, IIR
ERBFI, ETBEI, ELSI, EDSSI = 1, 2, 4, 8
NONE, MODEM, EMPTY, DATA, LINE, TIMEOUT = 0x1, 0x0, 0x2, 0x4, 0x6, 0xC
FIFO = 0x01
DTR, RTS, OUT1, OUT2, LOOP = 1, 2, 4, 8, 16


class UartPort:
    """A UART, its output, its interrupt levels and the calls of `room_available`."""

    def __init__(self, *, fcr: int = 0, ier: int = 0, mcr: int = OUT2 | RTS) -> None:
        self.sent = bytearray()
        self.levels: list[bool] = []
        self.rooms = 0
        self.uart = Uart16550(self, self.sent.extend)
        self.uart.room_available.add(self.room)
        self.write(FCR, fcr)
        self.write(MCR, mcr)
        self.write(IER, ier)

    def room(self) -> None:
        self.rooms += 1

    def set_level(self, level: bool) -> None:
        assert self.level is not level, "only changes are reported"
        self.levels.append(level)

    @property
    def level(self) -> bool:
        return self.levels[-1] if self.levels else False

    def read(self, register: int) -> int:
        return self.uart.read(register, 1)

    def write(self, register: int, value: int) -> None:
        self.uart.write(register, 1, value)

    @property
    def iir(self) -> int:
        return self.read(IIR) & 0x0F
