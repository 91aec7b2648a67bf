# SPDX-License-Identifier: Apache-2.0
"""pvpanic: one I/O port by which a guest kernel reports that it has crashed.

The interface is QEMU's (docs/specs/pvpanic): reading the port returns the events that the host
supports, writing it reports events, both as bits. The guest finds the port through the ACPI
device QEMU0001.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from devices.ports import Tracer
from devices.registers import Register, RegisterTable


class PanicEvent(enum.IntFlag):
    """An event that a guest can report."""

    PANICKED = 1 << 0
    CRASH_LOADED = 1 << 1  # a kdump kernel takes over and will write the dump itself


_SUPPORTED = PanicEvent.PANICKED | PanicEvent.CRASH_LOADED


class PvPanic:
    """The port; a `BusDevice` of one byte. `on_panic` is called once for each reported event."""

    def __init__(
        self, on_panic: Callable[[PanicEvent], None], tracer: Tracer | None = None
    ) -> None:
        self._on_panic = on_panic
        events = Register("events", 0, 1, read=lambda: int(_SUPPORTED), write=self._report)
        registers = RegisterTable("pvpanic", [events], tracer=tracer)
        self.read = registers.read
        self.write = registers.write

    def _report(self, value: int) -> None:
        for event in PanicEvent:
            if value & event:
                self._on_panic(event)
