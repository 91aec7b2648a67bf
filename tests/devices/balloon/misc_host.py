# SPDX-License-Identifier: Apache-2.0
"""The host's side of a misc queue, for its tests: a balloon, its driver and the responses."""

from __future__ import annotations

from collections.abc import Iterable

from devices.balloon.dialects import BITMAP, HYBRID, Dialect
from devices.balloon.misc import MiscCommand, MiscResponse
from devices.testing.balloon.driver import BalloonDriver
from devices.testing.balloon.misc import MISC, MiscDriver, MiscRequest
from devices.testing.balloon.requests import hybrid_records, range_records
from devices.testing.ram import AnonymousRam
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns

RAM_PAGES = 64 * MIB // PAGE_BYTES


class MiscHost:
    """A started balloon, the driver of its misc queue, and the responses received."""

    def __init__(self, ram: AnonymousRam | None = None, dialect: Dialect = BITMAP) -> None:
        self.driver = MiscDriver(BalloonDriver(dialect, ram=ram).start())
        self.board = self.driver.driver.board
        self.misc = self.board.balloon.misc
        self.responses: list[MiscResponse] = []

    def request(self, command: MiscCommand = MiscCommand.GET_UNUSED_PAGES) -> None:
        self.misc.request(command, self.responses.append)

    def send_request(self, command: MiscCommand = MiscCommand.GET_UNUSED_PAGES) -> MiscRequest:
        """Send a request to a driver that has offered a buffer; return the request it read."""
        self.driver.offer_buffer()
        self.request(command)
        (request,) = self.driver.take_requests()
        assert request.cmd == command
        return request

    @property
    def bad_payloads(self) -> int:
        return self.board.balloon.queues[MISC].counters.bad_payloads

    @property
    def why(self) -> str:
        """Reason for which the last bad payload was refused."""
        name, fields = next(e for e in reversed(self.board.tracer.events) if "why" in e[1])
        assert name == "balloon.bad_payload"
        return str(fields["why"])


def pages(*pfns: int | Iterable[int]) -> PageRuns:
    """Return the frames of single numbers and of iterables of numbers."""
    flat = [p for each in pfns for p in ([each] if isinstance(each, int) else each)]
    return PageRuns((pfn, 1) for pfn in flat)


def records_of(dialect: Dialect, pfns: list[int]) -> list[int]:
    """Return the records of the pages in the hybrid or ranges dialect."""
    return (hybrid_records if dialect is HYBRID else range_records)(pfns)
