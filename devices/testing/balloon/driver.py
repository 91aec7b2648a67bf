# SPDX-License-Identifier: Apache-2.0
"""A balloon on a board and its driver, in any dialect.

driver = BalloonDriver(STANDARD).start()
driver.inflate([100, 101])
assert driver.board.ram.discarded_pages == PageRuns([(100, 2)])
"""

from __future__ import annotations

from collections.abc import Iterable

from devices.balloon.device import BalloonDevice
from devices.balloon.dialects import Dialect
from devices.testing.balloon.requests import (
    bitmap_request,
    hybrid_records,
    pfn_array,
    range_records,
    record_request,
)
from devices.testing.board import Board
from devices.testing.driver import RINGS_GPA, VirtioDriver
from devices.testing.driver_queue import Used
from devices.testing.ram import AnonymousRam
from devices.testing.recorders import RecordingTracer

INFLATE, DEFLATE, STATS = 0, 1, 2
"""Queue numbers (5.5.2); STATS if the driver accepts VIRTIO_BALLOON_F_STATS_VQ."""

NUM_PAGES_OFFSET, ACTUAL_OFFSET = 0, 4
"""Byte offsets in the configuration space (5.5.4)."""


class BalloonBoard(Board):
    """A board with a balloon that speaks `dialect` and offers `offered`.

    `ram` is an `AnonymousRam` unless given, `balloon` the device. `actuals` collects the sizes, in
    4 KiB pages, that the balloon reports to the machine when the driver writes `actual`.
    """

    def __init__(
        self, dialect: Dialect, *, ram: AnonymousRam | None = None, offered: int | None = None
    ) -> None:
        self.ram = ram or AnonymousRam()
        self.actuals: list[int] = []
        tracer = RecordingTracer()
        self.balloon = BalloonDevice(dialect, self.ram, tracer, offered=offered)
        self.balloon.actual_written.add(self.actuals.append)
        super().__init__(self.balloon, tracer)


class BalloonDriver(VirtioDriver):
    """Driver of a balloon on a `board` of its own, which is created with the same arguments."""

    board: BalloonBoard

    def __init__(
        self,
        dialect: Dialect,
        *,
        ram: AnonymousRam | None = None,
        offered: int | None = None,
        rings_gpa: int = RINGS_GPA,
    ) -> None:
        super().__init__(BalloonBoard(dialect, ram=ram, offered=offered), rings_gpa=rings_gpa)
        self.dialect = dialect
        """The dialect of its requests."""

    def inflate(self, pfns: Iterable[int]) -> list[Used]:
        """Give the 4 KiB pages `pfns` to the balloon; return the used buffers."""
        return self.send(INFLATE, self._request(pfns))

    def deflate(self, pfns: Iterable[int]) -> list[Used]:
        """Take the 4 KiB pages `pfns` back; return the used buffers."""
        return self.send(DEFLATE, self._request(pfns))

    @property
    def num_pages(self) -> int:
        """Size of the balloon that the device requests, in 4 KiB pages."""
        return self.read_config(NUM_PAGES_OFFSET)

    def write_actual(self, pages: int) -> None:
        """Report a balloon of `pages` 4 KiB pages."""
        self.write_config(ACTUAL_OFFSET, 4, pages)

    def _request(self, pfns: Iterable[int]) -> list[bytes]:
        return page_request(self.dialect, pfns)


def page_request(dialect: Dialect, pfns: Iterable[int], **header: int) -> list[bytes]:
    """Return a message about the 4 KiB pages `pfns` as buffer elements.

    It is an inflate or deflate request, unless `header` has fields of `bitmap_request` or
    `record_request` that make it another; an array of the standard dialect has no header.
    """
    match dialect.name:
        case "bitmap":
            return bitmap_request(pfns, **header)
        case "hybrid":
            return record_request(hybrid_records(pfns), **header)
        case "ranges":
            return record_request(range_records(pfns), **header)
        case _:
            return [pfn_array(pfns)]
