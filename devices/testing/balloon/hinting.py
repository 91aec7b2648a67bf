# SPDX-License-Identifier: Apache-2.0
"""A driver that gives free page hints over a real virtqueue, for tests.

As Linux's driver does, it looks at `free_page_hint_cmd_id` when it hears of a configuration change:
a new id has it hint all of `free`, DONE has it take its pages back.
"""

from __future__ import annotations

import struct

from devices.balloon.dialects import STANDARD
from devices.testing.board import MIB, AnonymousRam, Board
from devices.testing.driver import VirtioDriver

HINTS = 3
COMMAND_ID_OFFSET = 8
STOP, DONE = 0, 1


class HintGuest:
    """A board with a balloon and the driver of its free page queue; 64 MiB of RAM unless given."""

    def __init__(self, *regions: tuple[int, int]) -> None:
        ram = AnonymousRam(*(regions or ((0, 64 * MIB),)))
        self.board = Board.with_balloon(STANDARD, ram=ram, offered=STANDARD.features.known)
        self.driver = VirtioDriver(self.board).start()
        self.free: list[tuple[int, int]] = [(4 * MIB, 4 * MIB), (12 * MIB, MIB)]
        """(gpa, size in bytes) of each free block."""
        self.held: list[tuple[int, int]] = []
        self.rounds = 0
        self.endless = False
        """Never says that there are no more pages."""
        self._id = STOP

    def answer(self) -> None:
        """Do what the device asks for, if it is something new."""
        if not self.board.balloon.running:
            return
        command_id = self.driver.read_device(COMMAND_ID_OFFSET)
        if command_id == DONE:
            self.free += self.held
            self.held = []
        elif command_id not in (STOP, self._id):
            self._id = command_id
            self.rounds += 1
            self.hint(command_id)

    def hint(self, command_id: int) -> None:
        """One round under `command_id`."""
        self.send(struct.pack("<I", command_id))
        for block in self.free:
            self.send(lent=[block])
        self.held += self.free
        self.free = []
        if not self.endless:
            self.send(struct.pack("<I", STOP))

    def send(self, text: bytes = b"", lent: list[tuple[int, int]] | None = None) -> None:
        """One buffer on the free page queue, which comes back."""
        queue = self.driver.queues[HINTS]
        queue.add([text] if text else [], lent=lent or [])
        self.driver.kick(HINTS)
        self.board.serve()
        (used,) = queue.take_used()
        assert used.length == 0
