# SPDX-License-Identifier: Apache-2.0
"""The PC's real-time clock and CMOS memory (Motorola MC146818A data sheet), ports 0x70 and 0x71.

An index written to the first port selects one of 128 bytes that the second port reads and writes.
The date and time are those of the clock given by the machine and are computed whenever they are
read; update-in-progress is never set, and software that reads the seconds before and after, as
Linux does, gets a consistent time. The clock is the host's, so writes to the date and time are
ignored. There are no alarms and no interrupts. The other bytes are memory, in which the RAM size is
stored as by the firmware of a PC.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from devices.legacy.acpi_registers import CENTURY_INDEX
from devices.ports import Tracer
from devices.registers import Access, Register, RegisterTable
from devices.state import Fields, Payload

RTC_PORTS = 2
"""Ports that the device occupies."""
CMOS_BYTES = 128
"""Size of the memory behind the second port, clock registers included."""

_STATUS_A = 0x0A
_STATUS_B = 0x0B
_STATUS_C = 0x0C
_STATUS_D = 0x0D
_STATUS_A_DIVIDERS = 0x26  # 32,768 Hz time base, 1,024 Hz periodic rate: what firmware sets
_STATUS_B_BINARY = 1 << 2
_STATUS_B_24_HOURS = 1 << 1
_STATUS_D_VALID = 1 << 7
_READ_ONLY = (_STATUS_A, _STATUS_C, _STATUS_D)
_HOURS_PM = 1 << 7


class Rtc:
    """Clock and CMOS memory; a `BusDevice` of two ports and `Stateful`.

    `now` returns seconds since 1970-01-01 UTC. `low_ram_bytes` and `high_ram_bytes` are the RAM
    below and above 4 GiB, for the size bytes.
    """

    STATE_KIND = "rtc"
    STATE_VERSION = 1

    def __init__(
        self,
        now: Callable[[], float],
        low_ram_bytes: int,
        high_ram_bytes: int,
        tracer: Tracer | None = None,
    ) -> None:
        self._now = now
        self._memory = bytearray(CMOS_BYTES)
        self._memory[_STATUS_A] = _STATUS_A_DIVIDERS
        self._memory[_STATUS_B] = _STATUS_B_24_HOURS
        self._memory[_STATUS_D] = _STATUS_D_VALID
        self._store_ram_size(low_ram_bytes, high_ram_bytes)
        self._registers = RegisterTable(
            "rtc",
            [
                Register("index", 0, 1, Access.WO, writable=CMOS_BYTES - 1),  # bit 7 masks NMI
                Register("data", 1, 1, read=self._read_data, write=self._write_data),
            ],
            tracer=tracer,
        )
        self.read = self._registers.read
        self.write = self._registers.write

    def save_state(self) -> Payload:
        """Return memory and index; the time always comes from the host's clock."""
        return {"registers": self._registers.save_state(), "memory": bytes(self._memory)}

    def restore_state(self, fields: Fields) -> None:
        """As `Stateful.restore_state`."""
        restore_registers = self._registers.check_state(fields.part("registers"))
        memory = fields.data("memory", length=CMOS_BYTES)
        if any(memory[index] != self._memory[index] for index in _READ_ONLY):
            raise fields.error("memory", "differs in a read-only status register")
        fields.done()
        restore_registers()
        self._memory = bytearray(memory)

    def _store_ram_size(self, low_bytes: int, high_bytes: int) -> None:
        low_kib = low_bytes >> 10
        extended_kib = min(low_kib - 1024, 0xFFFF)
        sizes = {
            0x15: (640, 2),  # base memory in KiB
            0x17: (extended_kib, 2),  # above 1 MiB in KiB
            0x30: (extended_kib, 2),  # the same, as found by firmware
            0x34: (max(low_kib - 16 * 1024, 0) // 64, 2),  # above 16 MiB in 64 KiB
            0x5B: (high_bytes >> 16, 3),  # above 4 GiB in 64 KiB
        }
        for index, (value, length) in sizes.items():
            self._memory[index : index + length] = value.to_bytes(length, "little")

    def _read_data(self) -> int:
        index = self._registers["index"]
        value = self._time_field(index)
        return self._memory[index] if value is None else value

    def _write_data(self, value: int) -> None:
        index = self._registers["index"]
        if index not in _READ_ONLY and self._time_field(index) is None:
            self._memory[index] = value

    def _time_field(self, index: int) -> int | None:
        """Return the byte at `index` of the date and time, encoded as register B selects."""
        now = time.gmtime(int(self._now()))
        match index:
            case 0x00:
                return self._encode(now.tm_sec)
            case 0x02:
                return self._encode(now.tm_min)
            case 0x04:
                return self._encode_hour(now.tm_hour)
            case 0x06:
                return self._encode((now.tm_wday + 1) % 7 + 1)  # Sunday is 1
            case 0x07:
                return self._encode(now.tm_mday)
            case 0x08:
                return self._encode(now.tm_mon)
            case 0x09:
                return self._encode(now.tm_year % 100)
            case int(value) if value == CENTURY_INDEX:
                return self._encode(now.tm_year // 100)
        return None

    def _encode(self, value: int) -> int:
        if self._memory[_STATUS_B] & _STATUS_B_BINARY:
            return value
        return value // 10 << 4 | value % 10

    def _encode_hour(self, hour: int) -> int:
        if self._memory[_STATUS_B] & _STATUS_B_24_HOURS:
            return self._encode(hour)
        return self._encode((hour + 11) % 12 + 1) | _HOURS_PM * (hour >= 12)
