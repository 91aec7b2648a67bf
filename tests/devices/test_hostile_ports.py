# SPDX-License-Identifier: Apache-2.0
"""Accesses of any size and in any order to all platform devices and the PCI host bridge.

Invariant: no access raises, a read returns a value of its size, and queues filled by accesses do
not grow with their number.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from devices.balloon.dialects import STANDARD
from devices.bus import Bus
from devices.legacy.acpi_pm import AcpiPm
from devices.legacy.i8042 import I8042
from devices.legacy.pvpanic import PvPanic
from devices.legacy.rtc import RTC_PORTS, Rtc
from devices.legacy.uart import FIFO_BYTES, Uart16550
from devices.pci.host_bridge import ConfigMechanism1
from devices.testing.recorders import RecordingInterruptLine, RecordingTracer
from pyvmm.memory import layout
from pyvmm.units import MIB
from tests.fuzz.checked_balloon import CheckedBalloonBoard

BOARD = CheckedBalloonBoard(STANDARD, STANDARD.features.known)
PORTS = [
    *range(layout.COM1_PORT, layout.COM1_PORT + layout.COM1_PORTS),
    *range(layout.ACPI_PM_PORT, layout.ACPI_PM_PORT + layout.ACPI_PM_PORTS),
    *range(layout.PCI_CONFIG_PORT, layout.PCI_CONFIG_PORT + layout.PCI_CONFIG_PORTS),
    *range(layout.RTC_PORT, layout.RTC_PORT + RTC_PORTS),
    layout.I8042_DATA_PORT,
    layout.I8042_COMMAND_PORT,
    layout.PVPANIC_PORT,
]


class PcPorts:
    """A PC's I/O ports, whose devices record their output in lists."""

    def __init__(self) -> None:
        self.output: list[bytes] = []
        self.ends: list[str] = []
        self.rooms = 0
        self.bus = Bus("pio", tracer=RecordingTracer())
        self.uart = Uart16550(RecordingInterruptLine(), self.output.append)
        self.uart.room_available.add(self._room)
        end = self.ends.append
        i8042 = I8042(lambda: end("reset"))
        self.bus.map(layout.COM1_PORT, layout.COM1_PORTS, self.uart)
        self.bus.map(layout.I8042_DATA_PORT, 1, i8042.data)
        self.bus.map(layout.I8042_COMMAND_PORT, 1, i8042.command)
        pm = AcpiPm(lambda: end("off"), lambda: end("reset"))
        self.bus.map(layout.ACPI_PM_PORT, layout.ACPI_PM_PORTS, pm)
        self.bus.map(layout.PVPANIC_PORT, 1, PvPanic(lambda event: end("panic")))
        self.bus.map(layout.RTC_PORT, RTC_PORTS, Rtc(lambda: 1.8e9, 64 * MIB, 0))
        pci = ConfigMechanism1(BOARD.pci, lambda: end("reset"))
        self.bus.map(layout.PCI_CONFIG_PORT, layout.PCI_CONFIG_PORTS, pci)

    def _room(self) -> None:
        self.rooms += 1


ACCESS = st.tuples(
    st.booleans(),
    st.one_of(st.sampled_from(PORTS), st.integers(0, 0xFFFF)),
    st.sampled_from([1, 2, 4]),
    st.one_of(st.integers(0, 255), st.integers(0, 2**32 - 1)),
)


@settings(max_examples=300, deadline=None)
@given(accesses=st.lists(ACCESS, max_size=80), typed=st.binary(max_size=40))
def test_no_port_access_raises(accesses: list[tuple[bool, int, int, int]], typed: bytes) -> None:
    ports = PcPorts()
    for offers, (is_write, port, size, value) in enumerate(accesses, 1):
        if is_write:
            ports.bus.write(port, size, value & (1 << 8 * size) - 1)
        else:
            assert 0 <= ports.bus.read(port, size) < 1 << 8 * size
        assert ports.uart.receive(typed) <= FIFO_BYTES
        assert ports.rooms <= offers, "room is offered once for what was refused once"
    assert all(len(each) == 1 for each in ports.output)
    BOARD.check_idle()
