# SPDX-License-Identifier: Apache-2.0
"""The port devices of a machine: where they are, and how the guest ends the VM through them."""

from __future__ import annotations

import pytest

from devices.bus import Bus
from pyvmm.machine.exit_result import ExitReason, ExitResult
from pyvmm.machine.legacy_devices import LEGACY_DEVICES, LegacyDevices
from pyvmm.trace.stream import events_of
from pyvmm.trace.tracer import EventTracer
from pyvmm.units import GIB, MIB
from pyvmm_native.serial import ByteQueue, SerialFastPath
from tests.pyvmm.machine.recording_vm import RecordingVm

COM1, POST, RTC_INDEX, RTC_DATA = 0x3F8, 0x80, 0x70, 0x71


class PcBoard:
    """The port devices of a machine with `ram_bytes` of RAM."""

    def __init__(self, ram_bytes: int = 64 * MIB, tracer: EventTracer | None = None) -> None:
        self.recording = RecordingVm()
        self.pio = Bus("pio")
        self.output = ByteQueue(lambda: None, 100)
        self.exits: list[ExitResult] = []
        self.devices = LegacyDevices(
            self.recording.vm,
            self.pio,
            ram_bytes,
            self.output,
            SerialFastPath(self.output, COM1),
            self.exits.append,
            tracer,
        )

    def cmos(self, index: int) -> int:
        self.pio.write(RTC_INDEX, 1, index)
        return self.pio.read(RTC_DATA, 1)


def test_accesses_to_every_port_device_are_events() -> None:
    tracer = EventTracer()
    board = PcBoard(tracer=tracer.quiet)
    tracer.start()
    for port in (COM1 + 7, POST, RTC_INDEX, 0x60, 0x64, 0x505, 0x602):
        board.pio.write(port, 1, 0)
    batch = tracer.stop()
    assert batch is not None
    events = [*events_of(batch)]
    assert {event.device for event in events} == {*LEGACY_DEVICES}
    assert [event.fields["table"] for event in events] == [
        "uart",
        "post",
        "rtc",
        "i8042.data",
        "i8042.command",
        "pvpanic",
        "acpi_pm",
    ]


def test_only_the_ports_of_the_devices_are_claimed() -> None:
    board = PcBoard()
    claimed = {port for port in range(0x1_0000) if board.pio.overlaps(port, 1)}
    assert claimed == {
        *(0x60, 0x64),  # i8042
        *(RTC_INDEX, RTC_DATA),
        POST,
        *range(COM1, COM1 + 8),
        0x505,  # pvpanic
        *range(0x600, 0x610),  # ACPI power management
    }


@pytest.mark.parametrize(
    ("port", "size", "value", "reason"),
    [
        (0x64, 1, 0xFE, ExitReason.RESET),
        (0x604, 2, 1 << 13 | 5 << 10, ExitReason.POWEROFF),
        (0x608, 1, 1, ExitReason.RESET),
        (0x505, 1, 1, ExitReason.PANIC),
    ],
)
def test_the_guest_ends_the_vm(port: int, size: int, value: int, reason: ExitReason) -> None:
    board = PcBoard()
    board.pio.write(port, size, value)
    (result,) = board.exits
    assert result.reason is reason
    assert bool(result.detail) == (reason is ExitReason.PANIC)


@pytest.mark.parametrize(("port", "value"), [(0x60, 0xFE), (0x505, 2), (POST, 0xFF)])
def test_the_vm_continues_after_other_writes(port: int, value: int) -> None:
    """Such as the announcement of a crash kernel, which runs next."""
    board = PcBoard()
    board.pio.write(port, 1, value)
    assert board.exits == []


def test_the_uart_writes_to_the_console_and_interrupts_on_gsi_4() -> None:
    board = PcBoard()
    board.pio.write(COM1 + 4, 1, 8)  # OUT2
    board.pio.write(COM1 + 1, 1, 2)  # the transmitter is empty
    assert board.recording.levels == [(4, 1)]
    board.pio.write(COM1, 1, ord("x"))
    assert board.output.take() == b"x"


def test_the_post_port_keeps_the_last_code() -> None:
    board = PcBoard()
    board.pio.write(POST, 1, 0x55)
    assert board.pio.read(POST, 1) == 0x55


def test_the_cmos_shows_ram_below_and_above_4_gib() -> None:
    board = PcBoard(5 * GIB)
    above_16m_64k = board.cmos(0x34) | board.cmos(0x35) << 8
    above_4g_64k = board.cmos(0x5B) | board.cmos(0x5C) << 8 | board.cmos(0x5D) << 16
    assert above_16m_64k == (3 * GIB - 16 * MIB) // (64 << 10)
    assert above_4g_64k == 2 * GIB // (64 << 10)
