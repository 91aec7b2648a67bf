# SPDX-License-Identifier: Apache-2.0
"""ACPI fixed hardware: the PM1a register block and the reset register (ACPI 6.4, 4.8.3).

Sixteen ports, with the layout that the tables of `pyvmm.boot.acpi` announce:

    +0  PM1a status    word   no fixed event ever occurs, so it reads as 0
    +2  PM1a enable    word
    +4  PM1a control   word   SLP_TYP and SLP_EN: power off
    +8  reset          byte   RESET_VALUE: reset

The system control interrupt is therefore never raised. There is no PM timer: the guest has kvmclock
and the TSC, and every read of a port is an exit.
"""

from __future__ import annotations

from collections.abc import Callable

from devices.legacy.acpi_registers import (
    PM1A_CONTROL_BYTES,
    PM1A_CONTROL_OFFSET,
    PM1A_EVENT_OFFSET,
    RESET_OFFSET,
    RESET_VALUE,
    SLEEP_TYPE_SOFT_OFF,
)
from devices.ports import Tracer
from devices.registers import Access, Register, RegisterTable
from devices.state import Fields, Payload

CONTROL_SCI_ENABLE = 1 << 0  # the machine is always in ACPI mode
CONTROL_SLEEP_ENABLE = 1 << 13
"""Bits of PM1a control: SCI_EN and SLP_EN."""
_SLEEP_TYPE_SHIFT = 10
_SLEEP_TYPE_MASK = 0b111


class AcpiPm:
    """The register block; a `BusDevice` and `Stateful`.

    The callbacks are called on the guest's request.
    """

    STATE_KIND = "acpi_pm"
    STATE_VERSION = 1

    def __init__(
        self,
        on_poweroff: Callable[[], None],
        on_reset: Callable[[], None],
        tracer: Tracer | None = None,
    ) -> None:
        self._on_poweroff = on_poweroff
        self._on_reset = on_reset
        self._registers = RegisterTable(
            "acpi_pm",
            [
                Register("pm1a_status", PM1A_EVENT_OFFSET, 2, Access.RO),
                Register("pm1a_enable", PM1A_EVENT_OFFSET + 2, 2),
                Register(
                    "pm1a_control",
                    PM1A_CONTROL_OFFSET,
                    PM1A_CONTROL_BYTES,
                    read=lambda: CONTROL_SCI_ENABLE,
                    write=self._control,
                ),
                Register("reset", RESET_OFFSET, 1, Access.WO, write=self._reset),
            ],
            tracer=tracer,
        )
        self.read = self._registers.read
        self.write = self._registers.write

    def save_state(self) -> Payload:
        """Return the events that the guest enabled."""
        return {"pm1a_enable": self._registers["pm1a_enable"]}

    def restore_state(self, fields: Fields) -> None:
        """As `Stateful.restore_state`."""
        enable = fields.number("pm1a_enable", below=1 << 16)
        fields.done()
        self._registers["pm1a_enable"] = enable

    def _control(self, value: int) -> None:
        sleep_type = value >> _SLEEP_TYPE_SHIFT & _SLEEP_TYPE_MASK
        if value & CONTROL_SLEEP_ENABLE and sleep_type == SLEEP_TYPE_SOFT_OFF:
            self._on_poweroff()

    def _reset(self, value: int) -> None:
        if value == RESET_VALUE:
            self._on_reset()
