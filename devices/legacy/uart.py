# SPDX-License-Identifier: Apache-2.0
"""A 16550A UART (National Semiconductor PC16550D data sheet), as COM1 of a PC.

This model has no notion of time: a character written is sent at once, so the transmitter is always
empty again, and the four character times without activity, after which the receiver reports a
character time-out, have always passed. Characters that fill the transmitter FIFO without another
access to the chip in between count as one transmission: the transmitter empty interrupt falls and
rises once, not 16 times. Everything else is as in the chip: both FIFO modes, trigger levels,
interrupt priorities and what clears each interrupt, loopback, modem status with deltas.

Interrupts, highest first, with what clears them (data sheet, table 5):

    receiver line status    IIR 0x6   reading LSR
    received data           IIR 0x4   FIFO below its trigger level
    character time-out      IIR 0xC   FIFO empty
    transmitter empty       IIR 0x2   reading IIR while it says so, writing THR
    modem status            IIR 0x0   reading MSR

On a PC the chip's interrupt output passes a gate that OUT2 opens; loopback forces OUT2 off.

LSR and THR, and no other register, have a fast path past this model. Its `SerialFastPath` always
has the current value of LSR and the number of writes to THR that the model need not see, and the
KVM_RUN loop serves both registers from there (pyvmm_native.serial). A driver that polls leaves the
transmitter interrupt disabled, and all its characters take the fast path; of a driver that waits
for the interrupt, all but the first of each FIFO filling do.

Input arrives through `receive`, which accepts only as many characters as fit, and none before the
driver is ready for them: until it asserts RTS, as for a terminal with hardware flow control, or has
enabled both the FIFOs and the received data interrupt. A driver that sets up the chip resets the
FIFOs and reads RBR several times, which would lose whatever had arrived. Linux enables the
interrupt, then the FIFOs, which clears them, and last asserts RTS. If `receive` accepted fewer
characters than it was offered, `room_available` is called once the guest has emptied the receiver
or becomes ready. The caller serialises `receive` with the guest's accesses (the machine's device
lock).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from devices.legacy import uart_bits as bits
from devices.listeners import Listeners
from devices.ports import InterruptLine, Tracer
from devices.registers import Access, Register, RegisterTable
from devices.state import Fields, Payload
from pyvmm_native.serial import UNLIMITED, ByteQueue, SerialFastPath

FIFO_BYTES = 16
"""Characters that each of the two FIFOs holds."""

_TRIGGER_BYTES = (1, 4, 8, 14)  # by FCR bits 7:6
_MCR_WRITABLE = 0x1F
# The line is connected to a terminal that is always ready.
_MSR_TERMINAL = bits.MSR_CTS | bits.MSR_DSR | bits.MSR_DCD
# In loopback each modem control output is connected to one modem status input.
_LOOPBACK_WIRES = (
    (bits.MCR_RTS, bits.MSR_CTS),
    (bits.MCR_DTR, bits.MSR_DSR),
    (bits.MCR_OUT1, bits.MSR_RI),
    (bits.MCR_OUT2, bits.MSR_DCD),
)


class Uart16550:
    """A 16550A; a `BusDevice` of eight one-byte registers and `Stateful`.

    `irq` follows the interrupt output as a level. `output` is called with every character sent
    except those that `fast_path` appends to its queue; both must end in the same queue. Accesses to
    registers, on either path, are events of `tracer`.
    """

    STATE_KIND = "uart"
    STATE_VERSION = 1

    def __init__(
        self,
        irq: InterruptLine,
        output: Callable[[bytes], None],
        fast_path: SerialFastPath | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.room_available: Listeners[[]] = Listeners()
        """Called when the guest can take more after `receive` refused characters."""
        self._irq = irq
        self._output = output
        self._fast_path = fast_path or SerialFastPath(ByteQueue(lambda: None, 0), 0)  # never used
        self._irq_level = False
        self._refused = False  # receive() accepted less than it was offered
        self._received: deque[int] = deque()
        self._fifos_enabled = False
        self._trigger_bytes = 1
        self._ier = 0
        self._divisor = 1
        self._dlab = False
        self._loopback = False
        self._gate_open = False
        self._overrun = False
        self._transmitter_empty_pending = True
        self._modem_inputs = _MSR_TERMINAL
        self._modem_deltas = 0
        self._registers = RegisterTable(
            "uart",
            [
                Register("rbr_thr_dll", 0, 1, read=self._read_data, write=self._write_data),
                Register("ier_dlm", 1, 1, read=self._read_ier, write=self._write_ier),
                Register("iir_fcr", 2, 1, read=self._read_iir, write=self._write_fcr),
                Register("lcr", 3, 1, write=self._lcr_written),
                Register("mcr", 4, 1, writable=_MCR_WRITABLE, write=self._mcr_written),
                Register("lsr", 5, 1, Access.RO, read=self._read_lsr),
                Register("msr", 6, 1, Access.RO, read=self._read_msr),
                Register("scr", 7, 1),
            ],
            tracer=tracer,
        )
        if tracer is not None and tracer.native is not None:
            self._fast_path.trace(tracer.native, "uart", lsr="lsr", thr="rbr_thr_dll")
        self.read = self._registers.read
        self.write = self._registers.write
        self._update()
        self._begin_transmission()

    # --- Outside ----------------------------------------------------------------------------
    @property
    def can_receive(self) -> bool:
        """True if `receive` would accept at least one character now."""
        return self._room_bytes() > 0

    def receive(self, data: bytes) -> int:
        """Accept as many characters of `data` as there is room for; return their number."""
        accepted = min(len(data), self._room_bytes())
        self._refused = accepted < len(data)
        self._received.extend(data[:accepted])
        self._update()
        return accepted

    def _room_bytes(self) -> int:
        if self._loopback or not self._driver_is_ready:  # loopback cuts off the outside
            return 0
        return self._capacity_bytes - len(self._received)

    @property
    def _driver_is_ready(self) -> bool:
        rts = self._registers["mcr"] & bits.MCR_RTS
        return bool(rts or (self._fifos_enabled and self._ier & bits.IER_RECEIVED_DATA))

    def _offer_room(self) -> None:
        if self._refused and not self._received and self.can_receive:
            self._refused = False
            self.room_available()

    # --- State ------------------------------------------------------------------------------
    @property
    def _capacity_bytes(self) -> int:
        return FIFO_BYTES if self._fifos_enabled else 1

    def _interrupt(self) -> int:
        """Return the IIR code of the pending enabled interrupt with the highest priority."""
        if self._ier & bits.IER_LINE_STATUS and self._overrun:
            return bits.IIR_LINE_STATUS
        if self._ier & bits.IER_RECEIVED_DATA and self._received:
            reached = len(self._received) >= self._trigger_bytes
            return bits.IIR_RECEIVED_DATA if reached else bits.IIR_TIMEOUT
        if self._ier & bits.IER_TRANSMITTER_EMPTY and self._transmitter_empty_pending:
            return bits.IIR_TRANSMITTER_EMPTY
        if self._ier & bits.IER_MODEM_STATUS and self._modem_deltas:
            return bits.IIR_MODEM_STATUS
        return bits.IIR_NONE

    @property
    def _line_status(self) -> int:
        return (
            bits.LSR_TRANSMITTER_EMPTY
            | bits.LSR_DATA_READY * bool(self._received)
            | bits.LSR_OVERRUN * self._overrun
        )

    def _update(self) -> None:
        """Publish LSR and the interrupt level; LSR first, as an interrupted driver reads it."""
        self._fast_path.line_status = None if self._overrun else self._line_status
        level = self._gate_open and self._interrupt() != bits.IIR_NONE
        if level != self._irq_level:
            self._irq_level = level
            self._irq.set_level(level)

    def save_state(self) -> Payload:
        """Return the chip's state, without the characters that were offered but not accepted."""
        return {
            "registers": self._registers.save_state(),
            "received": bytes(self._received),
            "fifos_enabled": self._fifos_enabled,
            "trigger_bytes": self._trigger_bytes,
            "ier": self._ier,
            "divisor": self._divisor,
            "overrun": self._overrun,
            "transmitter_empty_pending": self._transmitter_empty_pending,
            "modem_deltas": self._modem_deltas,
        }

    def restore_state(self, fields: Fields) -> None:
        """As `Stateful.restore_state`."""
        restore_registers = self._registers.check_state(fields.part("registers"))
        fifos_enabled = fields.flag("fifos_enabled")
        received = fields.data("received", at_most=FIFO_BYTES if fifos_enabled else 1)
        trigger_bytes = fields.number("trigger_bytes")
        if trigger_bytes not in (_TRIGGER_BYTES if fifos_enabled else (1,)):
            raise fields.error("trigger_bytes", f"cannot be {trigger_bytes}")
        ier, divisor = fields.number("ier", below=1 << 4), fields.number("divisor", below=1 << 16)
        overrun, pending = fields.flag("overrun"), fields.flag("transmitter_empty_pending")
        modem_deltas = fields.number("modem_deltas", below=1 << 4)
        fields.done()
        self._ier = 0  # no interrupt before the whole state is restored
        restore_registers()
        self._fifos_enabled, self._trigger_bytes = fifos_enabled, trigger_bytes
        self._received = deque(received)
        self._divisor, self._overrun = divisor, overrun
        self._transmitter_empty_pending = pending
        self._lcr_written(self._registers["lcr"])
        self._mcr_written(self._registers["mcr"])
        self._ier, self._modem_deltas = ier, modem_deltas
        self._begin_transmission()
        self._update()

    def _begin_transmission(self) -> None:
        """Make the next character the first of a transmission, after an access by the driver.

        With the transmitter interrupt disabled, transmissions do not matter and the fast path may
        serve all writes to THR.
        """
        needed = self._ier & bits.IER_TRANSMITTER_EMPTY or self._dlab or self._loopback
        self._fast_path.thr_credits = 0 if needed else UNLIMITED

    # --- Receiver and transmitter -----------------------------------------------------------
    def _read_data(self) -> int:
        if self._dlab:
            return self._divisor & 0xFF
        value = self._received.popleft() if self._received else 0
        self._update()
        self._offer_room()
        return value

    def _write_data(self, value: int) -> None:
        if self._dlab:
            self._divisor = self._divisor & 0xFF00 | value
            return
        if self._fast_path.take_thr_credit():
            self._output(bytes([value]))
            return
        # The interrupt falls and rises, which an edge-triggered input must see.
        self._transmitter_empty_pending = False
        self._update()
        self._fast_path.thr_credits = 0 if self._loopback else self._capacity_bytes - 1
        if self._loopback:
            self._receive_own(value)
        else:
            self._output(bytes([value]))
        self._transmitter_empty_pending = True
        self._update()

    def _receive_own(self, value: int) -> None:
        """Receive our own character in loopback; the transmitter does not wait for room."""
        if len(self._received) < self._capacity_bytes:
            self._received.append(value)
            return
        self._overrun = True
        if not self._fifos_enabled:  # RBR is overwritten; a full FIFO keeps its contents
            self._received[0] = value

    def _read_lsr(self) -> int:
        self._begin_transmission()
        value = self._line_status
        if self._overrun:
            self._overrun = False
            self._update()
        return value

    # --- Interrupts and FIFO control --------------------------------------------------------
    def _read_ier(self) -> int:
        return self._divisor >> 8 if self._dlab else self._ier

    def _write_ier(self, value: int) -> None:
        if self._dlab:
            self._divisor = self._divisor & 0xFF | value << 8
            return
        if value & ~self._ier & bits.IER_TRANSMITTER_EMPTY:
            self._transmitter_empty_pending = True  # enabling it while THR is empty raises it
        self._ier = value & 0x0F
        self._begin_transmission()
        self._update()
        self._offer_room()

    def _read_iir(self) -> int:
        self._begin_transmission()
        code = self._interrupt()
        if code == bits.IIR_TRANSMITTER_EMPTY:
            self._transmitter_empty_pending = False
            self._update()
        return code | bits.IIR_FIFOS_ENABLED * self._fifos_enabled

    def _write_fcr(self, value: int) -> None:
        enable = bool(value & bits.FCR_ENABLE)
        # Changing the mode clears the FIFOs; other bits are taken only while they are enabled.
        if enable != self._fifos_enabled or (enable and value & bits.FCR_CLEAR_RECEIVER):
            self._received.clear()
        self._fifos_enabled = enable
        self._trigger_bytes = _TRIGGER_BYTES[value >> 6] if enable else 1
        self._begin_transmission()
        self._update()
        self._offer_room()

    def _lcr_written(self, value: int) -> None:
        self._dlab = bool(value & bits.LCR_DLAB)
        self._begin_transmission()

    # --- Modem ------------------------------------------------------------------------------
    def _mcr_written(self, value: int) -> None:
        self._loopback = bool(value & bits.MCR_LOOPBACK)
        self._begin_transmission()
        self._gate_open = value & (bits.MCR_OUT2 | bits.MCR_LOOPBACK) == bits.MCR_OUT2
        inputs = _MSR_TERMINAL
        if self._loopback:
            inputs = sum(status for control, status in _LOOPBACK_WIRES if value & control)
        changed = inputs ^ self._modem_inputs
        deltas = changed >> 4 & (bits.MSR_DELTA_CTS | bits.MSR_DELTA_DSR | bits.MSR_DELTA_DCD)
        if changed & bits.MSR_RI and not inputs & bits.MSR_RI:
            deltas |= bits.MSR_TRAILING_EDGE_RI
        self._modem_inputs = inputs
        self._modem_deltas |= deltas
        self._update()
        self._offer_room()

    def _read_msr(self) -> int:
        value = self._modem_inputs | self._modem_deltas
        self._modem_deltas = 0
        self._update()
        return value
