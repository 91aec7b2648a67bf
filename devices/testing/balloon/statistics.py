# SPDX-License-Identifier: Apache-2.0
"""A driver that reports statistics over a real virtqueue, for tests.

It keeps one buffer, as Linux's driver does: the first report goes out with `start`, and each time
the device gives the buffer back, `answer` sends it filled anew with the present `statistics`.

    guest = StatsGuest(STANDARD)
    guest.start()
    guest.board.balloon.ask_for_stats()
    guest.answer()
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from devices.balloon.dialects import BITMAP, Dialect
from devices.testing.board import MIB, AnonymousRam, Board
from devices.testing.driver import ALL_FEATURES, STATS, VirtioDriver

MAJOR_FAULTS, FREE, TOTAL = 2, 4, 5


def stats_payload(entries: Iterable[tuple[int, int]]) -> bytes:
    """`struct virtio_balloon_stat` entries (5.5.6.3), packed."""
    return b"".join(struct.pack("<H", tag) + struct.pack("<Q", value) for tag, value in entries)


class StatsGuest:
    """A board with a balloon and the driver of its statistics queue."""

    def __init__(self, dialect: Dialect = BITMAP) -> None:
        self.board = Board.with_balloon(dialect, ram=AnonymousRam((0, 48 * MIB)))
        self.driver = VirtioDriver(self.board)
        self.statistics = {FREE: 600 * MIB, TOTAL: 1000 * MIB, MAJOR_FAULTS: 7}
        self.asked = 0
        """Questions that reached the driver."""

    def start(self, wanted: int = ALL_FEATURES) -> StatsGuest:
        """Bring the device up (again) and make the first report, unasked."""
        self.driver.start(wanted=wanted)
        self.send()
        return self

    def send(self, payload: bytes | None = None) -> None:
        """Make a report available; the device may give the buffer back at once."""
        report = stats_payload(self.statistics.items()) if payload is None else payload
        self.driver.queues[STATS].add([report])
        self.driver.kick(STATS)
        self.board.serve()

    def answer(self, payload: bytes | None = None) -> bool:
        """Send a report for the buffer that the device gave back; False if it gave none back."""
        queue = self.driver.queues.get(STATS)
        used = queue.take_used() if queue else []
        if not used:
            return False
        assert [each.length for each in used] == [0]
        self.asked += 1
        self.send(payload)
        return True
