# SPDX-License-Identifier: Apache-2.0
"""An interpreter of bytes as the actions of a guest's driver, for fuzzing.

Invariant: whatever the bytes, the device raises no exception beyond its policy, and all invariants
of `checked_board` hold, at every step and when the guest is idle at the end. Only pages that the
guest provided to the device change.

Each byte is an instruction, whose operands are the bytes after it (zeros at the end). Operands are
mostly almost valid: a valid request with one corrupted field gets further than noise. `write_later`
changes memory while the device works, at the N-th point at which another processor of the guest
could write.

`Guest` has the instructions that suit any device; `balloon_program` and `console_program` add those
of a device and the function `run`, which the hypothesis tests, the fuzzers and the replay of their
corpora run.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from devices.ports import BusDevice
from devices.testing.board import APERTURE, SLOT
from tests.fuzz.careless_driver import (
    ALL_ONES,
    BAR0,
    BAR2,
    QUEUE_DESC,
    QUEUE_ENABLE,
    QUEUE_SIZE,
    CarelessDriver,
    Ring,
    descriptor,
)
from tests.fuzz.checked_board import REGIONS, CheckedBoard, check

EDGES = [
    edge + delta
    for gpa, size in REGIONS
    for edge in (gpa, gpa + size)
    for delta in (-4096, -16, -1, 0, 1, 16)
] + [0xA_0000, APERTURE[0], 1 << 63, ALL_ONES - 15, ALL_ONES]
LENGTHS = [0, 1, 4, 16, 32, 64, 4096, 8192, 0x10000, 0x20000, 0x30000, 1 << 31, (1 << 32) - 1]
RING_SIZES = [4, 8, 16, 128]
INDICES = [0, 1, 2, 3, 7, 127, 128, 0x7FFF, 0xFFFE, 0xFFFF]


class OutOfBytes(Exception):
    """The program has ended."""


class Program:
    """Reads operands from the bytes of a program."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def opcode(self) -> int:
        if self._at >= len(self._data):
            raise OutOfBytes
        return self.byte()

    def byte(self) -> int:
        at = self._at
        self._at = at + 1
        return self._data[at] if at < len(self._data) else 0

    def number(self, size: int) -> int:
        at = self._at
        self._at = at + size
        return int.from_bytes(self._data[at : at + size], "little")

    def take(self, count: int) -> bytes:
        at = self._at
        self._at = at + count
        return self._data[at : at + count].ljust(count, b"\0")

    def pick(self, choices: Sequence[int], raw_bytes: int) -> int:
        """Return one of `choices`, or an arbitrary number of `raw_bytes` bytes."""
        at = self.byte()
        return choices[at % len(choices)] if at < 192 else self.number(raw_bytes)


class Guest(CarelessDriver):
    """A guest that runs one program on `board`; a device type adds its own instructions."""

    INSTRUCTIONS: ClassVar[Sequence[Callable[[Any], None]]]
    """The instruction of each opcode, repeated in turn."""

    def __init__(self, board: CheckedBoard, program: Program) -> None:
        super().__init__(board)
        self.program = program

    # Operands.

    def queue(self) -> int:
        return self.program.byte() % (len(self.board.device.queues) + 1)

    def gpa(self) -> int:
        return self.program.pick(EDGES, 8)

    # Instructions.

    def send_bytes(self) -> None:
        """Send an arbitrary payload."""
        queue, count = self.queue(), self.program.byte()
        data = self.program.take(count % 64)
        self.add(queue, [(self.place(data), len(data), 0)], bool(count & 0x80))

    def send_elements(self) -> None:
        """Send elements of any address, length and direction."""
        queue, shape = self.queue(), self.program.byte()
        elements = [
            (self.gpa(), self.program.pick(LENGTHS, 4), self.program.byte() & 0xFF)
            for _ in range(shape % 5 + 1)
        ]
        self.add(queue, elements, bool(shape & 0x80))

    def write_descriptor(self) -> None:
        ring, program = self.ring(self.queue()), self.program
        at, gpa, length = program.byte() % ring.size, self.gpa(), program.pick(LENGTHS, 4)
        flags, following = program.byte(), program.pick(INDICES, 2)
        self.poke(ring.desc + 16 * at, descriptor(gpa, length, flags, following))

    def write_index(self) -> None:
        """Write the available index, flags, an element, or used_event."""
        ring, which = self.ring(self.queue()), self.program.byte()
        value = self.program.pick(INDICES, 2)
        if which & 0x80:
            value = ring.next_avail + value & 0xFFFF
            ring.next_avail = value
        offset = (2, 0, 4 + 2 * (which >> 2 & 0x1F) % (2 * ring.size), 4 + 2 * ring.size)[which % 4]
        self.poke(ring.avail + offset, struct.pack("<H", value))

    def write_memory(self) -> None:
        self.poke(self.program.number(2), self.program.take(self.program.byte() % 33))

    def write_later(self) -> None:
        self.countdown = self.program.byte() % 8
        data = self.program.take(self.program.byte() % 17)
        self.later.append((self.program.number(2), data))

    def add_again(self) -> None:
        """Make the same descriptors available again, many at once."""
        ring = self.ring(self.queue())
        ring.next_avail = ring.next_avail + self.program.byte() % (ring.size + 2) & 0xFFFF
        self.poke(ring.avail + 2, struct.pack("<H", ring.next_avail))

    def kick(self) -> None:
        queue = self.queue()
        self.ring(queue)
        self.mmio.write(BAR0 + 0x3000 + 4 * queue, 2, queue)

    def serve_once(self) -> None:
        """Serve the oldest pending notification, as the event loop does."""
        pending = self.board.notifiers.notified
        if pending:
            queue = pending.pop(0)
            if self.board.transport.serve_queue(queue):
                pending.append(queue)

    def serve_all(self) -> None:
        for queue in self.rings:
            if queue < len(self.board.device.queues):
                self.board.serve_all(queue)

    def restart(self) -> None:
        """Reset the device at any time, and negotiate other features."""
        wanted = ALL_ONES ^ self.program.byte()
        self.place_bars()
        self.start(wanted)

    def reset_queue(self) -> None:
        self.reset_ring(self.queue())

    def place_ring(self) -> None:
        """Place a ring anywhere: overlapping, misaligned, across regions, outside RAM."""
        program, queue = self.program, self.queue()
        self.reset_ring(queue)
        ring = Ring(queue, RING_SIZES[program.byte() & 3])
        write = self.mmio.write
        write(BAR0 + QUEUE_SIZE, 2, ring.size)
        for i, usual in enumerate((ring.desc, ring.avail, ring.used)):
            how = program.byte()
            gpa = usual + how - 32 if how < 64 else self.gpa() if how < 128 else usual
            write(BAR0 + QUEUE_DESC + 8 * i, 8, gpa & ALL_ONES)
        write(BAR0 + QUEUE_ENABLE, 2, 1)
        self.rings[queue] = ring

    def access_bar(self) -> None:
        """Access any offset of the BARs with any size, mostly near the structures."""
        program = self.program
        where = program.byte()
        base = (0, 0, 0x1000, 0x2000, 0x2000, 0x3000, 0x10_0000, 0x10_0800)[where & 7]
        offset = base + (program.byte() if where & 8 else program.byte() & 0x3F)
        if where & 0xF0 == 0xF0:
            offset = program.number(2)
        self.access(self.mmio, BAR0 + offset)

    def access_ports(self) -> None:
        """Access configuration space through the ports, mostly this device's."""
        program = self.program
        register = program.byte() & 0xFC
        address = 1 << 31 | SLOT << 11 | register
        if program.byte() >= 224:
            address = program.number(4)
        self.pio.write(0xCF8, 4, address)
        self.access(self.pio, 0xCF8 + program.byte() % 8)

    def access(self, bus: BusDevice, address: int) -> None:
        shape = self.program.byte()
        size = (1, 2, 4, 8)[shape & 3]
        if bus is self.pio:
            size = min(size, 4)
        if shape & 4:
            value = bus.read(address, size)
            check(0 <= value < 1 << 8 * size, f"{value:#x} read as {size} bytes at {address:#x}")
        else:
            value = self.program.pick([0, 1, 2, 3, 6, 0xF, 0xFFFF, 1 << 15, 0xC0 << 24], size)
            bus.write(address, size, value & (1 << 8 * size) - 1)

    def access_ecam(self) -> None:
        """Access configuration space through ECAM, mostly this device's."""
        program = self.program
        offset, which = program.byte(), program.byte()
        if which >= 192:
            offset = program.number(3)
        self.access(self.ecam, offset + (SLOT << 15) * (which < 192))

    def access_config(self) -> None:
        """Access configuration space directly: BARs, command, BAR window, MSI-X control."""
        offset, shape = self.program.byte(), self.program.byte()
        size = (1, 2, 4, 4)[shape & 3]
        function = self.board.function
        if shape & 4:
            value = function.config_read(offset, size)
            check(0 <= value < 1 << 8 * size, f"{value:#x} read at {offset:#x}")
        else:
            value = self.program.pick([0, 1, 2, 4, 6, 0x406, 0xC000, BAR0, BAR2, 0xFFFF_FFFF], size)
            function.config_write(offset, size, value & (1 << 8 * size) - 1)

    def step(self) -> bool:
        """Run one instruction; False at the end of the program."""
        try:
            instruction = self.INSTRUCTIONS[self.program.opcode() % len(self.INSTRUCTIONS)]
        except OutOfBytes:
            self.later.clear()
            return False
        instruction(self)
        return True

    def run(self) -> None:
        while self.step():
            pass
