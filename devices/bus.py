# SPDX-License-Identifier: Apache-2.0
"""An address space of devices: I/O ports, guest-physical MMIO, or a function's configuration space.

`Bus` keeps non-overlapping ranges sorted by start and finds the device of an address by bisection.
An access inside one range goes to its device unchanged. An access that crosses a range's end (or
starts in a hole and reaches into a range) is split into single bytes, each of which goes to the
device at its address, so a device never sees an access outside its range. Addresses that no device
claims read as all ones and drop writes, as on a PC; both are traced as `unclaimed_read` and
`unclaimed_write`.

Threads: vCPU threads look devices up while another one moves a BAR. The sorted map is an immutable
value that `map` and `unmap` replace as a whole, so a lookup sees either the old or the new map. The
bus does not serialise the devices themselves, and two threads must not call `map` or `unmap` at
once: the machine's device lock covers both.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from devices.ports import BusDevice, Tracer


_MappedRange = tuple[int, int, Callable[[int, int], int], Callable[[int, int, int], None]]
"""Start and end of a range, and the `read` and `write` of its device."""


class Bus:
    """Ranges of addresses and the devices behind them; itself a `BusDevice`.

    `name` identifies the bus in traces; `unclaimed_byte` is the value of a byte without a device.
    """

    def __init__(
        self, name: str, *, tracer: Tracer | None = None, unclaimed_byte: int = 0xFF
    ) -> None:
        self.name = name
        self._tracer = tracer
        self._unclaimed_byte = unclaimed_byte
        # Starts for bisection, and the ranges themselves, in the same order.
        self._map: tuple[list[int], list[_MappedRange]] = ([], [])

    def map(self, start: int, length: int, device: BusDevice) -> None:
        """Map `device` at [start, start + length); it sees offsets from `start`.

        Raises ValueError for an empty range or one that overlaps a range already mapped.
        """
        if start < 0 or length <= 0:
            raise ValueError(f"{self.name}: bad range {start:#x}, length {length:#x}")
        if self.overlaps(start, length):
            raise ValueError(f"{self.name}: {start:#x}, length {length:#x} is already in use")
        entry = (start, start + length, device.read, device.write)
        starts, ranges = self._map
        at = bisect_right(starts, start)
        self._map = [*starts[:at], start, *starts[at:]], [*ranges[:at], entry, *ranges[at:]]

    def unmap(self, start: int) -> None:
        """Remove the range that was mapped at `start`; ValueError if there is none."""
        ranges = [entry for entry in self._map[1] if entry[0] != start]
        if len(ranges) == len(self._map[1]):
            raise ValueError(f"{self.name}: nothing is mapped at {start:#x}")
        self._map = ([first for first, *_ in ranges], ranges)

    def overlaps(self, start: int, length: int) -> bool:
        """Return whether any byte of [start, start + length) belongs to a device."""
        starts, ranges = self._map
        before_end = bisect_left(starts, start + length)
        return before_end > 0 and ranges[before_end - 1][1] > start

    # Both search inline: a function call would cost as much as the search, at every access.
    def read(self, address: int, size: int) -> int:
        """Read `size` bytes at `address` as a little-endian number."""
        starts, ranges = self._map
        index = bisect_right(starts, address) - 1
        if index >= 0:
            start, end, read, _ = ranges[index]
            if address + size <= end:
                return read(address - start, size)
        if size == 1 or not self.overlaps(address, size):
            return self._unclaimed_read(address, size)
        return sum(self.read(address + i, 1) << (8 * i) for i in range(size))

    def write(self, address: int, size: int, value: int) -> None:
        """Write `value` as `size` little-endian bytes at `address`."""
        starts, ranges = self._map
        index = bisect_right(starts, address) - 1
        if index >= 0:
            start, end, _, write = ranges[index]
            if address + size <= end:
                write(address - start, size, value)
                return
        if size == 1 or not self.overlaps(address, size):
            if self._tracer is not None:
                self._tracer.event(
                    "unclaimed_write", bus=self.name, address=address, size=size, value=value
                )
            return
        for i in range(size):
            self.write(address + i, 1, (value >> (8 * i)) & 0xFF)

    def _unclaimed_read(self, address: int, size: int) -> int:
        if self._tracer is not None:
            self._tracer.event("unclaimed_read", bus=self.name, address=address, size=size)
        return int.from_bytes(bytes([self._unclaimed_byte]) * size, "little")
