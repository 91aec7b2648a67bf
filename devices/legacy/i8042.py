# SPDX-License-Identifier: Apache-2.0
"""The reset line of a keyboard controller, the only part that operating systems still use.

Command 0xFE pulses the line that resets the processor. There is no keyboard, and the ACPI tables
declare that there is no 8042. A driver that nevertheless probes it, as Linux does without ACPI,
first reads until the output buffer is empty. It never is: the status register has all bits set, as
on a bus without a device, except that the input buffer is always empty, so software that waits for
that before it sends the command does not wait.
"""

from __future__ import annotations

from collections.abc import Callable

from devices.ports import Tracer
from devices.registers import Access, Register, RegisterTable

COMMAND_PULSE_RESET = 0xFE
"""Command that pulses the reset line of the processor."""
_STATUS_INPUT_BUFFER_FULL = 1 << 1
_STATUS = 0xFF & ~_STATUS_INPUT_BUFFER_FULL


class I8042:
    """The reset line behind port 0x64; `data` is for port 0x60, `command` for port 0x64."""

    def __init__(self, on_reset: Callable[[], None], tracer: Tracer | None = None) -> None:
        self._on_reset = on_reset
        data = Register("data", 0, 1, Access.WO)
        self.data = RegisterTable("i8042.data", [data], tracer=tracer)
        self.command = RegisterTable(
            "i8042.command",
            [Register("command", 0, 1, read=lambda: _STATUS, write=self._command)],
            tracer=tracer,
        )

    def _command(self, value: int) -> None:
        if value == COMMAND_PULSE_RESET:
            self._on_reset()
