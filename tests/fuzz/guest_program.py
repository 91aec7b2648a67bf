# SPDX-License-Identifier: Apache-2.0
"""An interpreter of bytes as the actions of a guest's balloon driver, for fuzzing.

Invariant: whatever the bytes, the device raises no exception beyond its policy, and all invariants
of `checked_board` hold, at every step and when the guest is idle at the end. Only pages that the
guest provided to the device change.

The first two bytes choose the dialect, the features offered and accepted, the size of the rings and
whether the device is initialised; mostly it is, so that a random program reaches the queues. Each
further byte is an instruction, whose operands are the bytes after it (zeros at the end). Operands
are mostly almost valid: a valid request with one corrupted field gets further than noise.
`write_later` changes memory while the device works, at the N-th point at which another processor of
the guest could write.

The hypothesis tests, the fuzzer and the replay of its corpus all run `run`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

from devices.balloon.dialects import BITMAP, STANDARD, Role
from devices.balloon.misc import MiscCommand
from devices.ports import BusDevice
from devices.testing.board import APERTURE, SLOT
from devices.virtio import features
from pyvmm_native import PAGE_BYTES
from tests.fuzz.careless_driver import (
    ALL_ONES,
    BAR0,
    BAR2,
    QUEUE_DESC,
    QUEUE_ENABLE,
    QUEUE_SIZE,
    WRITE,
    CarelessDriver,
    Ring,
    descriptor,
)
from tests.fuzz.checked_board import REGIONS, CheckedBoard, check
from tests.fuzz.object_state import ObjectState

PATTERN_PFNS = [pfn for gpa, n in REGIONS[1:] for pfn in range(gpa // 4096, (gpa + n) // 4096)]

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
    """A guest that runs one program on `board`."""

    def __init__(self, board: CheckedBoard, program: Program) -> None:
        super().__init__(board)
        self.program = program

    # Operands.

    def queue(self) -> int:
        return self.program.byte() % (len(self.board.device.queues) + 1)

    def gpa(self) -> int:
        return self.program.pick(EDGES, 8)

    def pfns(self) -> list[int]:
        """Return page frames: mostly some that hold the pattern, sometimes others."""
        program = self.program
        kind = program.byte()
        if kind < 160:
            start, count = program.byte() % len(PATTERN_PFNS), kind % 12 + 1
            return PATTERN_PFNS[start : start + count]
        if kind < 220:
            mask = program.number(6)
            return [pfn for i, pfn in enumerate(PATTERN_PFNS) if mask >> i & 1]
        return [program.number(4) for _ in range(kind % 6)]

    def request(self) -> bytes:
        """Return a request that names pages, in this dialect or mistakenly in the other."""
        program = self.program
        pfns = self.pfns()
        corruption = program.byte()
        if (self.board.checked_balloon.dialect is STANDARD) ^ (corruption == 255):
            data = struct.pack(f"<{len(pfns)}I", *(pfn & 0xFFFF_FFFF for pfn in pfns))
            return data + program.take(corruption % 4) if corruption > 200 else data
        start = min(pfns, default=0) & ~63
        bits = 0
        for pfn in pfns:
            if pfn - start < 4096:
                bits |= 1 << pfn - start
        bitmap = bits.to_bytes((bits.bit_length() + 63) // 64 * 8 or 8, "little")
        fields = [0, 12, 0, 0, 0, start, len(bitmap)]
        if corruption % 8 == 7:  # a response to the pending request, or nearly one
            shape = program.byte()
            request = self.memory[self.request_gpa : self.request_gpa + 16]
            fields[0], fields[4] = struct.unpack("<H6xQ", request)
            fields[2] = shape % 3
            if shape & 0x40:
                fields[6] = 0
            if shape & 0x80:
                fields[shape >> 2 & 7 if shape & 0x1C != 0x1C else 0] ^= shape & 3
        elif corruption > 128:
            sizes = (2, 2, 2, 2, 8, 8, 8)
            at = corruption % 7
            fields[at] = program.pick([0, 1, 8, 12, 13, 21, 30, 64, 1 << 15], sizes[at])
        limits = (0xFFFF,) * 4 + (ALL_ONES,) * 3
        fields = [field & limit for field, limit in zip(fields, limits, strict=True)]
        return struct.pack("<HHHHQQQ", *fields) + bitmap

    # Instructions.

    def send_request(self) -> None:
        """Send a request in one to four descriptors."""
        queue, shape = self.queue(), self.program.byte()
        data = self.request()
        cuts = sorted({len(data) * i // (shape % 4 + 1) for i in range(shape % 4 + 2)})
        parts = [data[a:b] for a, b in pairwise(cuts)] or [b""]
        elements = [(self.place(part), len(part), 0) for part in parts]
        if shape & 0x40:
            elements.append((self.place(bytes(16)), 16, WRITE))
        self.add(queue, elements, bool(shape & 0x80))

    def send_bytes(self) -> None:
        """Send an arbitrary payload."""
        queue, count = self.queue(), self.program.byte()
        data = self.program.take(count % 64)
        self.add(queue, [(self.place(data), len(data), 0)], bool(count & 0x80))

    def send_statistics(self) -> None:
        queue, count = self.queue(), self.program.byte() % 20
        entries = (struct.pack("<HQ", tag, self.program.byte()) for tag in range(count))
        data = b"".join(entries)
        self.add(queue, [(self.place(data), len(data), 0)], False)

    def send_writable(self) -> None:
        """Send device-writable elements: a response buffer, or reported or hinted pages."""
        queue, shape = self.queue(), self.program.byte()
        if shape < 64:
            self.request_gpa = self.place(bytes(16))
            elements = [(self.request_gpa, 16, WRITE)]
        else:
            pages = self.pfns()
            elements = [(pfn * PAGE_BYTES, PAGE_BYTES, WRITE) for pfn in pages[:3]]
            elements = elements or [(self.gpa(), self.program.pick(LENGTHS, 4), WRITE)]
        self.add(queue, elements, bool(shape & 1))

    def send_command_id(self) -> None:
        """Send the command id of the current hinting, or STOP or DONE."""
        queue, shape = self.queue(), self.program.byte()
        value = self.mmio.read(BAR0 + 0x2008, 4) if shape < 160 else shape % 3
        self.add(queue, [(self.place(struct.pack("<I", value)), 4, 0)], False)

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

    def act_as_host(self) -> None:
        """Use the balloon from the host's side."""
        balloon, action = self.board.checked_balloon, self.program.byte()
        if action % 8 == 0:
            balloon.set_target(action % 57)
        elif action % 8 < 3:
            balloon.request_stats()
        elif action % 8 == 3:
            balloon.misc.cancel()
            balloon.misc.request(MiscCommand(action // 8 % 3), lambda answer: None)
        elif action % 8 == 4 and balloon.has_live(Role.FREE_PAGE_HINT):
            balloon.hinting.finish()
            balloon.hinting.start(lambda ending: None)
        elif action % 8 == 5:
            balloon.hinting.stop()
        elif action % 8 == 6:
            balloon.misc.cancel()
        else:
            _ = (balloon.counters, balloon.actual, balloon.has_live(Role.STATS))

    def step(self) -> bool:
        """Run one instruction; False at the end of the program."""
        try:
            instruction = INSTRUCTIONS[self.program.opcode() % len(INSTRUCTIONS)]
        except OutOfBytes:
            self.later.clear()
            return False
        instruction(self)
        return True

    def run(self) -> None:
        while self.step():
            pass


INSTRUCTIONS: tuple[Callable[[Guest], None], ...] = (
    Guest.send_request, Guest.send_request, Guest.send_request, Guest.send_bytes,
    Guest.send_statistics, Guest.send_command_id, Guest.send_writable, Guest.send_writable,
    Guest.send_elements,
    Guest.write_descriptor, Guest.write_index, Guest.write_memory, Guest.write_later,
    Guest.add_again, Guest.kick, Guest.serve_once, Guest.serve_once,
    Guest.serve_all, Guest.serve_all, Guest.restart, Guest.reset_queue,
    Guest.access_bar, Guest.access_bar, Guest.access_ports, Guest.access_ecam, Guest.access_config,
    Guest.act_as_host, Guest.place_ring, Guest.send_request, Guest.send_writable,
    Guest.serve_once, Guest.serve_all,
)  # fmt: skip


@cache
def _board(
    bitmap: int, offer: int, corruption: int, started: bool
) -> tuple[CheckedBoard, ObjectState]:
    """Return the board for one start configuration, and its state to restore."""
    dialect = BITMAP if bitmap else STANDARD
    known, default, required = (
        dialect.features.known,
        dialect.features.default,
        dialect.features.required,
    )
    board = CheckedBoard(dialect, (known, known, default, required)[offer])
    if started:
        guest = Guest(board, Program(b""))
        guest.place_bars()
        guest.start(ALL_ONES ^ corruption)
    board.ram.on_access = lambda: None
    return board, ObjectState(board)


def run(data: bytes) -> CheckedBoard:
    """Run `data` as a guest; raise any violation of the invariant."""
    program = Program(data)
    choice, wanted = program.byte(), program.byte()
    # Mostly all features or all but one.
    corruption = 1 << wanted % 8 if wanted & 8 else 0
    corruption |= features.EVENT_IDX * bool(wanted & 0x10) | features.INDIRECT_DESC * (
        wanted >= 0xC0
    )
    board, initial = _board(choice & 1, choice >> 1 & 3, corruption, choice < 0xF0)
    try:
        guest = Guest(board, program)
        guest.ring_size = RING_SIZES[choice >> 3 & 3]
        guest.run()
        board.check_idle()
    finally:
        initial.restore()
    return board
