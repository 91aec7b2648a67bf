# SPDX-License-Identifier: Apache-2.0
"""The small platform devices: reset line, real-time clock, ACPI power management, pvpanic."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.bus import Bus
from devices.legacy.acpi_pm import AcpiPm
from devices.legacy.i8042 import I8042
from devices.legacy.pvpanic import PanicEvent, PvPanic
from devices.legacy.rtc import CMOS_BYTES, RTC_PORTS, Rtc
from devices.ports import BusDevice
from pyvmm.units import GIB, MIB


class Calls(list[str]):
    def recorder(self, name: str) -> Callable[[], None]:
        return lambda: self.append(name)


# --- i8042 ------------------------------------------------------------------------------------
def test_only_the_pulse_command_resets() -> None:
    calls = Calls()
    i8042 = I8042(calls.recorder("reset"))
    for command in range(0xFE):
        i8042.command.write(0, 1, command)
    i8042.command.write(0, 1, 0xFF)
    i8042.data.write(0, 1, 0xFE)
    assert calls == []
    i8042.command.write(0, 1, 0xFE)
    assert calls == ["reset"]


def test_a_driver_that_empties_the_output_buffer_finds_no_i8042() -> None:
    """Linux reads up to 16 bytes while the buffer is full, then takes the controller as absent."""
    i8042 = I8042(lambda: None)
    for _ in range(17):
        assert i8042.command.read(0, 1) & 0x01, "output buffer full"
        i8042.data.read(0, 1)


def test_a_reset_waits_for_no_i8042() -> None:
    assert not I8042(lambda: None).command.read(0, 1) & 0x02, "input buffer full"


def test_the_i8042_takes_one_port_for_each_of_its_registers() -> None:
    i8042 = I8042(lambda: None)
    assert (i8042.data.size_bytes, i8042.command.size_bytes) == (1, 1)


# --- ACPI PM ----------------------------------------------------------------------------------
class Pm:
    def __init__(self) -> None:
        self.calls = Calls()
        self.block = AcpiPm(self.calls.recorder("poweroff"), self.calls.recorder("reset"))


def test_sleep_enable_with_the_soft_off_type_powers_off() -> None:
    pm = Pm()
    pm.block.write(4, 2, 5 << 10 | 1)  # Linux writes the type first, then type and enable
    assert pm.calls == []
    pm.block.write(4, 2, 5 << 10 | 1 << 13 | 1)
    assert pm.calls == ["poweroff"]


@pytest.mark.parametrize("sleep_type", [0, 1, 2, 3, 4, 6, 7])
def test_other_sleep_types_do_nothing(sleep_type: int) -> None:
    pm = Pm()
    pm.block.write(4, 2, sleep_type << 10 | 1 << 13)
    assert pm.calls == []


def test_the_machine_is_in_acpi_mode() -> None:
    pm = Pm()
    pm.block.write(4, 2, 0)
    assert pm.block.read(4, 2) == 1


def test_acpi_events_are_never_pending_and_enables_read_back() -> None:
    pm = Pm()
    pm.block.write(0, 4, 0x0120_FFFF)
    assert pm.block.read(0, 4) == 0x0120_0000


def test_only_the_reset_value_resets() -> None:
    pm = Pm()
    pm.block.write(8, 1, 0)
    pm.block.write(9, 1, 1)
    assert pm.calls == []
    pm.block.write(8, 1, 1)
    assert pm.calls == ["reset"]


# --- pvpanic ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("value", "events"),
    [
        (0, []),
        (1, [PanicEvent.PANICKED]),
        (2, [PanicEvent.CRASH_LOADED]),
        (3, [PanicEvent.PANICKED, PanicEvent.CRASH_LOADED]),
        (0xFC, []),
    ],
)
def test_pvpanic_reports_the_events_it_announces(value: int, events: list[PanicEvent]) -> None:
    seen: list[PanicEvent] = []
    port = PvPanic(seen.append)
    assert port.read(0, 1) == 3
    port.write(0, 1, value)
    assert seen == events


# --- RTC --------------------------------------------------------------------------------------
BCD_DATE = {0x00: 0x59, 0x02: 0x07, 0x04: 0x21, 0x06: 0x01, 0x07: 0x22, 0x08: 0x11, 0x09: 0x26}
BINARY_DATE = {0x00: 59, 0x02: 7, 0x04: 21, 0x06: 1, 0x07: 22, 0x08: 11, 0x09: 26}


def make_rtc(when: str) -> Rtc:
    moment = datetime.fromisoformat(when).replace(tzinfo=UTC).timestamp()
    return Rtc(lambda: moment, 3 * GIB, 5 * GIB)


def cmos(rtc: Rtc, index: int, value: int | None = None) -> int:
    rtc.write(0, 1, index)
    if value is not None:
        rtc.write(1, 1, value)
    return rtc.read(1, 1)


def test_the_rtc_starts_in_bcd_and_24_hour_mode() -> None:
    rtc = make_rtc("2026-11-22 21:07:59")
    assert {index: cmos(rtc, index) for index in BCD_DATE} == BCD_DATE
    assert cmos(rtc, 0x32) == 0x20
    assert cmos(rtc, 0x0A) & 0x80 == 0  # never in an update
    assert cmos(rtc, 0x0B) & 0x06 == 0x02  # BCD, 24 hours
    assert cmos(rtc, 0x0C) == 0
    assert cmos(rtc, 0x0D) == 0x80


def test_the_rtc_supports_binary_mode() -> None:
    rtc = make_rtc("2026-11-22 21:07:59")
    cmos(rtc, 0x0B, 0x06)
    assert {index: cmos(rtc, index) for index in BINARY_DATE} == BINARY_DATE
    assert cmos(rtc, 0x32) == 20


@pytest.mark.parametrize(
    ("hour", "bcd", "binary"),
    [(0, 0x12, 12), (1, 0x01, 1), (11, 0x11, 11), (12, 0x92, 0x8C), (13, 0x81, 0x81)],
)
def test_the_rtc_supports_12_hour_mode(hour: int, bcd: int, binary: int) -> None:
    rtc = make_rtc(f"2000-01-01 {hour:02}:00:00")
    cmos(rtc, 0x0B, 0x00)
    assert cmos(rtc, 0x04) == bcd
    cmos(rtc, 0x0B, 0x04)
    assert cmos(rtc, 0x04) == binary


def test_cmos_memory_can_be_written_but_the_date_cannot() -> None:
    rtc = make_rtc("2026-11-22 21:07:59")
    for index in range(0x80):
        cmos(rtc, index, 0x00 if index == 0x0B else 0xFF)
    assert cmos(rtc, 0x09) == 0x26
    assert cmos(rtc, 0x0D) == 0x80
    assert cmos(rtc, 0x40) == 0xFF
    assert cmos(rtc, 0x80 | 0x40) == 0xFF  # bit 7 of the index only masks NMI


def test_the_rtc_has_the_ports_and_the_memory_of_a_pc() -> None:
    """Two ports: the next two would be those of an extended bank, which is absent."""
    assert (RTC_PORTS, CMOS_BYTES) == (2, 128)


@pytest.mark.parametrize(
    ("low", "high", "above_1m_kib", "above_16m_64k", "above_4g_64k"),
    [
        (64 * MIB, 0, 63 * 1024, 48 * 16, 0),
        (3 * GIB, 13 * GIB, 0xFFFF, (3 * 1024 - 16) * 16, 13 * 1024 * 16),
    ],
)
def test_cmos_shows_the_memory_size(
    low: int, high: int, above_1m_kib: int, above_16m_64k: int, above_4g_64k: int
) -> None:
    rtc = Rtc(lambda: 0.0, low, high)

    def number(index: int, length: int) -> int:
        return int.from_bytes(bytes(cmos(rtc, index + i) for i in range(length)), "little")

    assert number(0x15, 2) == 640
    assert number(0x17, 2) == number(0x30, 2) == above_1m_kib
    assert number(0x34, 2) == above_16m_64k
    assert number(0x5B, 3) == above_4g_64k


# --- All of them ------------------------------------------------------------------------------
def all_devices() -> dict[str, tuple[int, BusDevice]]:
    def nothing() -> None: ...

    i8042 = I8042(nothing)
    return {
        "i8042 data": (1, i8042.data),
        "i8042 command": (1, i8042.command),
        "acpi pm": (16, AcpiPm(nothing, nothing)),
        "pvpanic": (1, PvPanic(lambda event: None)),
        "rtc": (2, make_rtc("2026-11-22 21:07:59")),
    }


@pytest.mark.parametrize("name", all_devices())
@given(data=st.data())
def test_accesses_of_any_size_are_safe(name: str, data: st.DataObject) -> None:
    length, device = all_devices()[name]
    bus = Bus("pio")
    bus.map(8, length, device)
    for _ in range(10):
        port = data.draw(st.integers(0, length + 16))
        size = data.draw(st.sampled_from([1, 2, 4]))
        bus.write(port, size, data.draw(st.integers(0, (1 << (8 * size)) - 1)))
        assert 0 <= bus.read(port, size) < 1 << (8 * size)
