# SPDX-License-Identifier: Apache-2.0
"""Bytes as the actions of a guest's balloon driver; see `guest_program`.

The first two bytes choose the dialect, the features offered and accepted, the size of the rings and
whether the device is initialised; mostly it is, so that a random program reaches the queues.
"""

from __future__ import annotations

import struct
from functools import cache
from itertools import pairwise

from devices.balloon.dialects import NAMES, STANDARD, Role, by_name
from devices.balloon.misc import MiscCommand
from devices.virtio import features
from pyvmm_native import PAGE_BYTES
from tests.fuzz.careless_driver import ALL_ONES, BAR0, WRITE
from tests.fuzz.checked_balloon import CheckedBalloonBoard
from tests.fuzz.checked_board import REGIONS
from tests.fuzz.guest_program import LENGTHS, RING_SIZES, Guest, Program
from tests.fuzz.object_state import ObjectState

PATTERN_PFNS = [pfn for gpa, n in REGIONS[1:] for pfn in range(gpa // 4096, (gpa + n) // 4096)]


class BalloonGuest(Guest):
    """A guest that runs one program on `board`, with the balloon's requests."""

    board: CheckedBalloonBoard

    # Operands.

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
        """Return a request that names pages, in this dialect or mistakenly in another."""
        pfns = self.pfns()
        corruption = self.program.byte()
        dialect = self.board.checked_balloon.dialect
        if (dialect is STANDARD) ^ (corruption == 255):
            data = struct.pack(f"<{len(pfns)}I", *(pfn & 0xFFFF_FFFF for pfn in pfns))
            return data + self.program.take(corruption % 4) if corruption > 200 else data
        if dialect.name in ("hybrid", "ranges"):
            return self.record_request(dialect.name == "hybrid", pfns, corruption)
        return self.bitmap_request(pfns, corruption)

    def bitmap_request(self, pfns: list[int], corruption: int) -> bytes:
        program = self.program
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

    def record_request(self, hybrid: bool, pfns: list[int], corruption: int) -> bytes:
        """Return records of these pages, of which `corruption` changes the header or one word."""
        program = self.program
        cmd = flag = request_id = 0
        empty = False
        if corruption % 8 == 7:  # a response to the pending request, or nearly one
            shape = program.byte()
            request = self.memory[self.request_gpa : self.request_gpa + 16]
            cmd, request_id = struct.unpack("<H6xQ", request)
            flag, empty = shape % 3, bool(shape & 0x40)
            if shape & 0x80:
                request_id ^= shape & 3
                cmd ^= shape >> 2 & 3
        words = (self.hybrid_words if hybrid else self.range_words)(pfns)
        length = 0 if empty else 8 * len(words)
        if corruption > 192:
            length = program.pick([0, 4, 8, 12, 64, 0xFFFF_FFF8], 4)
        elif corruption > 128 and words:
            change = program.pick([1, 1 << 12, 8 << 58, 4 << 58, 16 << 52, 1 << 51, 1 << 63], 8)
            words[corruption % len(words)] ^= change
        header = cmd & 0xFF | flag << 8 | (request_id & 0xFFFF) << 16 | (length & 0xFFFF_FFFF) << 32
        return struct.pack(f"<{len(words) + 1}Q", header, *(word & ALL_ONES for word in words))

    def hybrid_words(self, pfns: list[int]) -> list[int]:
        """Return a block for each page, one of which may be larger, or a bitmap of the rest."""
        words = [pfn | 12 << 52 for pfn in pfns]
        form = self.program.byte()
        at, kind = form % (len(pfns) or 1), form >> 5
        if kind in (5, 7) and pfns:
            bits = sum(1 << pfn - pfns[at] for pfn in pfns[at:] if 0 <= pfn - pfns[at] < 64)
            shift = 12 + (form & 3) * (kind == 7)
            words[at:] = [pfns[at] | shift << 52 | 8 << 58, bits]
        elif kind > 3 and pfns:
            words[at:] = [pfns[at] | 12 + (form & 7) << 52]
        return words

    def range_words(self, pfns: list[int]) -> list[int]:
        """Return a range for each page, one of which may be longer, or in the long form."""
        words = [pfn << 12 | 1 for pfn in pfns]
        form = self.program.byte()
        at, kind = form % (len(pfns) or 1), form >> 5
        if kind in (5, 7) and pfns:
            counts = [1, 4095, 4096, 4097, 1 << 24, (1 << 24) + 1]
            words[at:] = [pfns[at] << 12, self.program.pick(counts, 4)]
        elif kind > 3 and pfns:
            words[at:] = [pfns[at] << 12 | form & 31]
        return words

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

    INSTRUCTIONS = (
        send_request, send_request, send_request, Guest.send_bytes,
        send_statistics, send_command_id, send_writable, send_writable,
        Guest.send_elements,
        Guest.write_descriptor, Guest.write_index, Guest.write_memory, Guest.write_later,
        Guest.add_again, Guest.kick, Guest.serve_once, Guest.serve_once,
        Guest.serve_all, Guest.serve_all, Guest.restart, Guest.reset_queue,
        Guest.access_bar, Guest.access_bar, Guest.access_ports, Guest.access_ecam,
        Guest.access_config,
        act_as_host, Guest.place_ring, send_request, send_writable,
        Guest.serve_once, Guest.serve_all,
    )  # fmt: skip


@cache
def _board(
    number: int, offer: int, corruption: int, started: bool
) -> tuple[CheckedBalloonBoard, ObjectState]:
    """Return the board for one start configuration, and its state to restore."""
    dialect = by_name(NAMES[number])
    known, default, required = (
        dialect.features.known,
        dialect.features.default,
        dialect.features.required,
    )
    board = CheckedBalloonBoard(dialect, (known, known, default, required)[offer])
    if started:
        guest = BalloonGuest(board, Program(b""))
        guest.place_bars()
        guest.start(ALL_ONES ^ corruption)
    board.ram.on_access = lambda: None
    return board, ObjectState(board)


def run(data: bytes) -> CheckedBalloonBoard:
    """Run `data` as a guest; raise any violation of the invariant."""
    program = Program(data)
    choice, wanted = program.byte(), program.byte()
    # Mostly all features or all but one.
    corruption = 1 << wanted % 8 if wanted & 8 else 0
    corruption |= features.EVENT_IDX * bool(wanted & 0x10) | features.INDIRECT_DESC * (
        wanted >= 0xC0
    )
    dialect = choice & 1 | choice >> 4 & 2
    board, initial = _board(dialect, choice >> 1 & 3, corruption, choice < 0xF0)
    try:
        guest = BalloonGuest(board, program)
        guest.ring_size = RING_SIZES[choice >> 3 & 3]
        guest.run()
        board.check_idle()
    finally:
        initial.restore()
    return board
