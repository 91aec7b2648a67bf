# SPDX-License-Identifier: Apache-2.0
"""The driver of a balloon's statistics queue (VIRTIO 1.2, 5.5.6.3).

It has one buffer in flight, as Linux's driver does: `start` sends the first report, and
each time the device returns the buffer, `respond` fills it with the current `statistics`.

    guest = StatsGuest(STANDARD).start()
    guest.board.balloon.request_stats()
    guest.respond()
"""

from __future__ import annotations

from devices.balloon.dialects import BITMAP, Dialect
from devices.testing.balloon.driver import STATS, BalloonDriver
from devices.testing.balloon.requests import stats_payload
from devices.testing.driver import ALL_FEATURES
from devices.testing.ram import AnonymousRam

MAJOR_FAULTS, FREE, TOTAL = 2, 4, 5
"""Tags of statistics, VIRTIO_BALLOON_S_*."""


class StatsGuest:
    """A guest with a balloon, 48 MiB of RAM and `statistics`, values by tag.

    `driver` is its balloon driver, `board` the balloon's board.
    """

    def __init__(self, dialect: Dialect = BITMAP) -> None:
        self.driver = BalloonDriver(dialect, ram=AnonymousRam((0, 48 << 20)))
        self.board = self.driver.board
        self.statistics = {FREE: 600 << 20, TOTAL: 1000 << 20, MAJOR_FAULTS: 7}
        self.requests = 0
        """Requests for statistics that reached the driver."""

    def start(self, features: int = ALL_FEATURES) -> StatsGuest:
        """Bring the device up (again) and make the first report, which is not requested."""
        self.driver.start(features=features)
        self.send()
        return self

    def send(self, payload: bytes | None = None) -> None:
        """Make a report of `statistics`, or `payload`, available and serve the queue."""
        report = stats_payload(self.statistics.items()) if payload is None else payload
        self.driver.queues[STATS].add([report])
        self.driver.notify(STATS)
        self.board.serve()

    def respond(self, payload: bytes | None = None) -> bool:
        """Send a report if the device returned the buffer; return whether it did."""
        queue = self.driver.queues.get(STATS)
        used = queue.take_used() if queue else []
        if not used:
            return False
        assert [each.length for each in used] == [0]
        self.requests += 1
        self.send(payload)
        return True
