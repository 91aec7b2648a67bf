# SPDX-License-Identifier: Apache-2.0
"""The devices of a PC that are not on the PCI bus: UART, RTC, ACPI, i8042, pvpanic, POST port.

They are at fixed I/O ports (`pyvmm.memory.layout`) and notify the machine when the guest powers
off, resets or panics. `stateful` are the devices with saved state, in the order of saving.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from devices.legacy.acpi_pm import AcpiPm
from devices.legacy.i8042 import I8042
from devices.legacy.pvpanic import PanicEvent, PvPanic
from devices.legacy.rtc import RTC_PORTS, Rtc
from devices.legacy.uart import Uart16550
from devices.registers import Register, RegisterTable
from pyvmm.machine.exit_result import PANICKED, ExitReason, ExitResult
from pyvmm.machine.interrupts import GsiLine
from pyvmm.memory import layout

if TYPE_CHECKING:
    from devices.bus import Bus
    from devices.ports import Tracer
    from devices.state import Stateful
    from pykvm import Vm
    from pyvmm_native.serial import ByteQueue, SerialFastPath

LEGACY_DEVICES = ("uart", "i8042", "acpi_pm", "pvpanic", "post", "rtc")
"""The names of these devices in events."""


class LegacyDevices:
    """The port devices of a machine with `ram_bytes` of RAM, mapped on `pio`.

    `console_output` receives the guest's output on COM1, part of it by `serial`. `on_exit` is
    called with the reason when the guest ends the VM. Register accesses are events of `tracer`.
    """

    def __init__(
        self,
        vm: Vm,
        pio: Bus,
        ram_bytes: int,
        console_output: ByteQueue,
        serial: SerialFastPath,
        on_exit: Callable[[ExitResult], None],
        tracer: Tracer | None,
    ) -> None:
        self._on_exit = on_exit
        irq = GsiLine(vm, layout.COM1_GSI)
        self.uart = Uart16550(irq, console_output.put, serial, tracer)
        pio.map(layout.COM1_PORT, layout.COM1_PORTS, self.uart)

        def power_off() -> None:
            on_exit(ExitResult(ExitReason.POWEROFF))

        def report(event: PanicEvent) -> None:
            if event is PanicEvent.PANICKED:
                on_exit(ExitResult(ExitReason.PANIC, PANICKED))

        i8042 = I8042(self.reset, tracer)
        pio.map(layout.I8042_DATA_PORT, 1, i8042.data)
        pio.map(layout.I8042_COMMAND_PORT, 1, i8042.command)
        acpi_pm = AcpiPm(power_off, self.reset, tracer)
        pio.map(layout.ACPI_PM_PORT, layout.ACPI_PM_PORTS, acpi_pm)
        pio.map(layout.PVPANIC_PORT, 1, PvPanic(report, tracer))
        post = RegisterTable("post", [Register("code", 0, 1)], tracer=tracer)
        pio.map(layout.POST_PORT, 1, post)
        low, *high = (length for _, length in layout.ram_ranges(ram_bytes))
        rtc = Rtc(time.time, low, sum(high), tracer)
        pio.map(layout.RTC_PORT, RTC_PORTS, rtc)
        self.stateful: tuple[Stateful, ...] = (self.uart, acpi_pm, post, rtc)

    def reset(self) -> None:
        """End the VM as a guest that has requested a reset."""
        self._on_exit(ExitResult(ExitReason.RESET))
