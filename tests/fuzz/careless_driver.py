# SPDX-License-Identifier: Apache-2.0
"""A balloon driver without error handling, which `guest_program` directs.

It can start the device and build well-formed buffers, and ignores the device's state, so it
continues whatever that state is.
"""

from __future__ import annotations

import struct

from devices.bus import Bus
from devices.pci.host_bridge import ConfigMechanism1, EnhancedConfig
from devices.testing.board import APERTURE
from pyvmm_native import PAGE_BYTES
from tests.fuzz.checked_board import DRIVER_BYTES, CheckedBoard

ACKNOWLEDGE_DRIVER, FEATURES_OK, DRIVER_OK = 3, 11, 15
NEXT, WRITE, INDIRECT = 1, 2, 4
ALL_ONES = (1 << 64) - 1

BAR0, BAR2 = APERTURE[0], APERTURE[0] + 0x10_0000
STATUS, QUEUE_SELECT, QUEUE_SIZE, QUEUE_ENABLE, QUEUE_DESC, QUEUE_RESET = (
    0x14, 0x16, 0x18, 0x1C, 0x20, 0x3A
)  # fmt: skip
PCI_COMMAND, PCI_BAR0, PCI_BAR2 = 0x04, 0x10, 0x18
PAYLOAD_GPA = 8 * PAGE_BYTES  # rings are below, one page each


def descriptor(gpa: int, length: int, flags: int, following: int) -> bytes:
    return struct.pack("<QIHH", gpa & ALL_ONES, length, flags, following)


class Ring:
    """The driver's side of one queue; ignores the device's state."""

    def __init__(self, index: int, size: int) -> None:
        self.size = size
        self.desc = index * PAGE_BYTES
        self.avail = self.desc + 16 * size
        self.used = (self.avail + 6 + 2 * size + 3) & ~3
        self.next_avail = 0
        self.next_desc = 0


class CarelessDriver:
    """A driver of `board` that does each step as told, valid or not."""

    def __init__(self, board: CheckedBoard) -> None:
        self.memory = board.ram.driver_area
        self.rings: dict[int, Ring] = {}
        self.ring_size = 8
        self.payload_gpa = PAYLOAD_GPA
        self.request_gpa = PAYLOAD_GPA  # the buffer for the device's requests
        self.later: list[tuple[int, bytes]] = []
        self.countdown = 0
        self.attach(board)
        board.ram.on_access = self.on_access

    def attach(self, board: CheckedBoard) -> None:
        """Drive `board`, which has this guest's memory."""
        self.board = board
        self.mmio = board.mmio
        self.config_ports = ConfigMechanism1(board.pci, lambda: None)
        self.pio = Bus("pio")
        self.pio.map(0xCF8, 8, self.config_ports)
        self.ecam = EnhancedConfig(board.pci)

    def place_bars(self) -> None:
        """Place the BARs, and enable memory space and bus mastering."""
        config = self.board.function.config_write
        for register, gpa in ((PCI_BAR0, BAR0), (PCI_BAR2, BAR2)):
            config(register, 4, gpa)
            config(register + 4, 4, 0)
        config(PCI_COMMAND, 2, 0b110)

    def start(self, wanted: int) -> None:
        """Negotiate `wanted` of the offered features and go to DRIVER_OK."""
        mmio = self.mmio
        self.rings.clear()
        mmio.write(BAR0 + STATUS, 1, 0)
        mmio.write(BAR0 + STATUS, 1, ACKNOWLEDGE_DRIVER)
        accepted = self.board.device.offered & wanted
        for half in (0, 1):
            mmio.write(BAR0 + 8, 4, half)
            mmio.write(BAR0 + 12, 4, accepted >> 32 * half & 0xFFFF_FFFF)
        mmio.write(BAR0 + STATUS, 1, FEATURES_OK)
        mmio.write(BAR0 + STATUS, 1, DRIVER_OK)

    def ring(self, queue: int) -> Ring:
        """Return the queue's ring; set the queue up at its first use."""
        ring = self.rings.get(queue)
        if ring is None:
            ring = self.rings[queue] = Ring(queue, self.ring_size)
            write = self.mmio.write
            write(BAR0 + QUEUE_SELECT, 2, queue)
            write(BAR0 + QUEUE_SIZE, 2, ring.size)
            for i, gpa in enumerate((ring.desc, ring.avail, ring.used)):
                write(BAR0 + QUEUE_DESC + 8 * i, 8, gpa)
            write(BAR0 + QUEUE_ENABLE, 2, 1)
        return ring

    def reset_ring(self, queue: int) -> None:
        self.mmio.write(BAR0 + QUEUE_SELECT, 2, queue)
        self.mmio.write(BAR0 + QUEUE_RESET, 2, 1)
        self.rings.pop(queue, None)

    def poke(self, gpa: int, data: bytes) -> None:
        """Write guest memory; addresses wrap around in the driver's own part of it."""
        gpa %= DRIVER_BYTES
        data = data[: DRIVER_BYTES - gpa]
        self.memory[gpa : gpa + len(data)] = data

    def place(self, data: bytes) -> int:
        """Write `data` to free memory; return its address."""
        if self.payload_gpa + len(data) > DRIVER_BYTES:
            self.payload_gpa = PAYLOAD_GPA
        gpa = self.payload_gpa
        self.poke(gpa, data)
        self.payload_gpa += (len(data) + 15) & ~15
        return gpa

    def add(self, queue: int, elements: list[tuple[int, int, int]], indirect: bool) -> None:
        """Make one buffer of (gpa, length, flags) elements available."""
        ring = self.ring(queue)
        if indirect:
            table = b"".join(
                descriptor(gpa, n, flags | (i < len(elements) - 1), i + 1)
                for i, (gpa, n, flags) in enumerate(elements)
            )
            elements = [(self.place(table), len(table), INDIRECT)]
        head = at = ring.next_desc
        for i, (gpa, length, flags) in enumerate(elements):
            following = (at + 1) % ring.size
            flags |= i < len(elements) - 1
            self.poke(ring.desc + 16 * at, descriptor(gpa, length, flags, following))
            at = following
        ring.next_desc = at
        self.poke(ring.avail + 4 + 2 * (ring.next_avail % ring.size), struct.pack("<H", head))
        ring.next_avail = (ring.next_avail + 1) & 0xFFFF
        self.poke(ring.avail + 2, struct.pack("<H", ring.next_avail))

    def on_access(self) -> None:
        """Act as another processor of the guest, which may write to memory at this moment."""
        if self.later:
            self.countdown -= 1
            if self.countdown <= 0:
                gpa, data = self.later.pop(0)
                self.poke(gpa, data)
