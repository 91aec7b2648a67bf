# SPDX-License-Identifier: Apache-2.0
"""Accesses of vCPUs on the buses: under the device lock, one at a time."""

from __future__ import annotations

import threading

import pytest

from devices.bus import Bus
from pyvmm.machine.vcpu_thread import GuestBuses

PORT, GPA = 0x80, 0xC000_0000


class LockedDevice:
    """Records its accesses; fails if the device lock is not held."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self.accesses: list[tuple[int, ...]] = []

    def read(self, offset: int, size: int) -> int:
        assert self._lock.locked()
        self.accesses.append((offset, size))
        return 0x5A

    def write(self, offset: int, size: int, value: int) -> None:
        assert self._lock.locked()
        self.accesses.append((offset, size, value))


class TwoBuses:
    """A device on each bus; `after` are the device accesses at each end of a port write."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.ports, self.memory = LockedDevice(self.lock), LockedDevice(self.lock)
        pio, mmio = Bus("pio"), Bus("mmio")
        pio.map(PORT, 8, self.ports)
        mmio.map(GPA, 8, self.memory)
        self.after: list[int] = []
        self.buses = GuestBuses(pio, mmio, self.lock, self._after_write)

    def _after_write(self) -> None:
        assert not self.lock.locked(), "it may wait for a slow console"
        self.after.append(len(self.ports.accesses))


def test_accesses_reach_the_device_of_their_bus() -> None:
    board = TwoBuses()
    assert board.buses.pio_read(PORT + 1, 2) == 0x5A
    assert board.buses.mmio_read(GPA + 4, 4) == 0x5A
    board.buses.pio_write(PORT, 1, 7)
    board.buses.mmio_write(GPA, 8, 9)
    assert board.ports.accesses == [(1, 2), (0, 1, 7)]
    assert board.memory.accesses == [(4, 4), (0, 8, 9)]
    assert not board.lock.locked()


def test_the_console_may_wait_after_a_port_write_only() -> None:
    board = TwoBuses()
    board.buses.pio_read(PORT, 1)
    board.buses.mmio_write(GPA, 1, 1)
    assert board.after == []
    board.buses.pio_write(PORT, 1, 1)
    assert board.after == [2]


def test_an_exception_of_a_device_releases_the_lock() -> None:
    board = TwoBuses()
    board.ports.accesses = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        board.buses.pio_write(PORT, 1, 1)
    assert not board.lock.locked()
