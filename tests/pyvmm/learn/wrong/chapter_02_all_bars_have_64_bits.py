# SPDX-License-Identifier: Apache-2.0
"""Wrong: takes every BAR for one of 64 bits."""

from __future__ import annotations

from typing import NamedTuple, Protocol

FIRST_BAR, BARS = 0x10, 6
"""Offset of the first base address register, and how many there are (PCI 3.0, 6.2.5)."""
FLAGS, IS_64BIT = 0xF, 0x4
"""Low bits of a memory BAR that are not part of its address."""
CAPABILITIES_POINTER = 0x34
VENDOR_CAPABILITY = 0x09
"""Identity of capabilities whose contents the vendor defines, here VIRTIO."""
STRUCTURE_TYPES = range(1, 6)
"""VIRTIO_PCI_CAP_COMMON_CFG to VIRTIO_PCI_CAP_PCI_CFG (4.1.4)."""


class Function(Protocol):
    """A PCI function: its configuration space."""

    def config_read(self, offset: int, size: int) -> int:
        """Return `size` bytes at `offset`, as a number."""

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Write `size` bytes at `offset`."""


class Structure(NamedTuple):
    """A place in a BAR, in bytes."""

    bar: int
    offset: int
    length: int


class PciDriver:
    """The part of a driver that finds the registers of the device `function`."""

    def __init__(self, function: Function) -> None:
        self.function = function

    def assign_bars(self, gpa: int) -> dict[int, int]:
        """Place all BARs at `gpa` and above; return the address of each by its index.

        A BAR lies at a multiple of its size.
        """
        bars = {}
        index = 0
        while index < BARS:
            register = FIRST_BAR + 4 * index
            self.function.config_write(register, 4, 0xFFFF_FFFF)
            mask = self.function.config_read(register, 4) & ~FLAGS
            if mask:
                size_bytes = (~mask & 0xFFFF_FFFF) + 1
                gpa = -(-gpa // size_bytes) * size_bytes
                self.function.config_write(register, 4, gpa)
                self.function.config_write(register + 4, 4, 0)
                bars[index] = gpa
                gpa += size_bytes
            index += 2
        return bars

    def find_structures(self) -> dict[int, Structure]:
        """Return the virtio structures by their type, from the list of capabilities."""
        structures: dict[int, Structure] = {}
        offset = self.function.config_read(CAPABILITIES_POINTER, 1)
        while offset:
            read = self.function.config_read
            if read(offset, 1) == VENDOR_CAPABILITY:
                cfg_type, bar = read(offset + 3, 1), read(offset + 4, 1)
                found = Structure(bar, read(offset + 8, 4), read(offset + 12, 4))
                if cfg_type in STRUCTURE_TYPES and bar < BARS:
                    structures.setdefault(cfg_type, found)
            offset = read(offset + 1, 1)
        return structures
