# SPDX-License-Identifier: Apache-2.0
"""The driver of a balloon's free page hinting queue (VIRTIO 1.2, 5.5.6.5).

Like Linux's driver, it reads `free_page_hint_cmd_id` after a configuration change: with a new id
it hints all of `free`, with DONE it takes its pages back.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from devices.balloon.dialects import STANDARD
from devices.testing.balloon.driver import BalloonDriver
from devices.testing.ram import AnonymousRam

HINTS = 3
"""Queue number with all features accepted."""
COMMAND_ID_OFFSET = 8
STOP, DONE = 0, 1
"""Reserved command ids, VIRTIO_BALLOON_CMD_ID_*."""


class HintGuest:
    """A guest with a balloon and RAM `regions`, by default those of `AnonymousRam`.

    `driver` is its balloon driver, `board` the balloon's board.
    """

    def __init__(self, *regions: tuple[int, int]) -> None:
        self.driver = BalloonDriver(
            STANDARD, ram=AnonymousRam(*regions), offered=STANDARD.features.known
        ).start()
        self.board = self.driver.board
        self.free: list[tuple[int, int]] = [(4 << 20, 4 << 20), (12 << 20, 1 << 20)]
        """(gpa, size in bytes) of each free block."""
        self.hinted: list[tuple[int, int]] = []
        """Blocks hinted to the device and not taken back."""
        self.rounds = 0
        """Rounds of hinting begun."""
        self.endless = False
        """Do not end rounds: send no STOP."""
        self._id = STOP

    def respond(self) -> None:
        """Act on `free_page_hint_cmd_id` if it has changed."""
        if not self.board.balloon.running:
            return
        command_id = self.driver.read_config(COMMAND_ID_OFFSET)
        if command_id == DONE:
            self.free += self.hinted
            self.hinted = []
        elif command_id not in (STOP, self._id):
            self._id = command_id
            self.rounds += 1
            self.hint(command_id)

    def hint(self, command_id: int) -> None:
        """Hint all of `free` under `command_id`."""
        self.send(struct.pack("<I", command_id))
        for block in self.free:
            self.send(pages=[block])
        self.hinted += self.free
        self.free = []
        if not self.endless:
            self.send(struct.pack("<I", STOP))

    def send(self, command: bytes = b"", pages: Sequence[tuple[int, int]] = ()) -> None:
        """Send one buffer of a command, or of `pages` as (gpa, size in bytes); it is returned."""
        queue = self.driver.queues[HINTS]
        queue.add([command] if command else [], writable_segments=pages)
        self.driver.notify(HINTS)
        self.board.serve()
        (used,) = queue.take_used()
        assert used.length == 0
