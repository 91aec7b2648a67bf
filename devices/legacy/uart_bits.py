# SPDX-License-Identifier: Apache-2.0
"""Bits and codes of a 16550A's registers (National Semiconductor PC16550D data sheet, table 2)."""

# Interrupt enable register
IER_RECEIVED_DATA = 1 << 0
IER_TRANSMITTER_EMPTY = 1 << 1
IER_LINE_STATUS = 1 << 2
IER_MODEM_STATUS = 1 << 3

# Interrupt identification register: codes, and the bits that show enabled FIFOs
IIR_NONE = 0x1
IIR_MODEM_STATUS = 0x0
IIR_TRANSMITTER_EMPTY = 0x2
IIR_RECEIVED_DATA = 0x4
IIR_LINE_STATUS = 0x6
IIR_TIMEOUT = 0xC
IIR_FIFOS_ENABLED = 0xC0

# FIFO control register
FCR_ENABLE = 1 << 0
FCR_CLEAR_RECEIVER = 1 << 1

# Line control register
LCR_DLAB = 1 << 7

# Modem control register
MCR_DTR = 1 << 0
MCR_RTS = 1 << 1
MCR_OUT1 = 1 << 2
MCR_OUT2 = 1 << 3
MCR_LOOPBACK = 1 << 4

# Line status register
LSR_DATA_READY = 1 << 0
LSR_OVERRUN = 1 << 1
LSR_TRANSMITTER_EMPTY = 0x60  # holding register and shift register

# Modem status register
MSR_DELTA_CTS = 1 << 0
MSR_DELTA_DSR = 1 << 1
MSR_TRAILING_EDGE_RI = 1 << 2
MSR_DELTA_DCD = 1 << 3
MSR_CTS = 1 << 4
MSR_DSR = 1 << 5
MSR_RI = 1 << 6
MSR_DCD = 1 << 7
