# SPDX-License-Identifier: Apache-2.0
"""A checked board with a balloon. Further invariants to those of `checked_board`:

* a request discards only pages that it names, by the reference decoder, and none if it must be
  refused;
* one buffer may be in flight on the statistics queue, and one on the misc queue.
"""

from __future__ import annotations

from devices.balloon.device import BalloonDevice
from devices.balloon.dialects import Dialect, Role
from devices.errors import BadPayload
from devices.testing.recorders import RecordingTracer
from devices.virtio.device import REQUESTS_PER_CALL
from devices.virtio.queue import Requests
from pyvmm_native.page_requests import PageRequests
from pyvmm_native.ring import Chain
from tests.fuzz import page_oracle
from tests.fuzz.checked_board import REGIONS, CheckedBoard, CheckedDevice, CheckedRam, check
from tests.fuzz.page_oracle import Pages

RAM_PAGES = page_oracle.pages_of_regions(REGIONS)
ONE_IN_FLIGHT = (Role.STATS, Role.MISC)


class CheckedBalloon(CheckedDevice, BalloonDevice):
    """A balloon that checks its work on each buffer."""

    max_served = REQUESTS_PER_CALL

    def __init__(
        self, dialect: Dialect, ram: CheckedRam, tracer: RecordingTracer, offered: int
    ) -> None:
        super().__init__(ram, dialect, ram, tracer, offered=offered)

    def role(self, queue: int) -> Role | None:
        return self.roles.get(queue)

    def serve(self, queue: int, chain: Chain) -> int | None:
        ram, role = self.ram, self.role(queue)
        self.served += 1
        named = self._named(role, chain)
        ram.allowed, ram.discarded_pfns = named or frozenset(), frozenset()
        ram.touched |= page_oracle.touched_by(chain.writable_segments)
        ram.on_access()
        try:
            written = super().serve(queue, chain)
        except BadPayload as error:
            check(not ram.discarded_pfns, "a request was refused that had discarded pages")
            must_serve = role in (Role.INFLATE, Role.DEFLATE) and named is not None
            check(not must_serve, f"{role} of {sorted(named or ())} refused: {error}")
            raise
        finally:
            ram.allowed = frozenset()
        check(named is not None, f"bad {role} request accepted")
        if role is Role.INFLATE:
            check(
                ram.discarded_pfns == named,
                f"{sorted(named or ())} named, {sorted(ram.discarded_pfns)} discarded",
            )
        self._count_in_flight(queue, role, written)
        return written

    def serve_requests(self, queue: int, requests: Requests) -> None:
        assert isinstance(requests, PageRequests)
        ram, role = self.ram, self.role(queue)
        self.served += requests.count
        named: set[int] = set()
        for message in requests.messages:
            pages = page_oracle.NAMED_BY[self.dialect.name](message, RAM_PAGES)
            check(pages is not None, f"bad {role} request accepted")
            named |= pages or frozenset()
        ram.allowed, ram.discarded_pfns = frozenset(named), frozenset()
        if role is Role.DEFLATE:
            ram.allowed = frozenset()
        ram.on_access()
        super().serve_requests(queue, requests)
        check(
            ram.discarded_pfns == ram.allowed,
            f"{sorted(ram.allowed)} named, {sorted(ram.discarded_pfns)} discarded",
        )
        ram.allowed = frozenset()

    def on_bad_payload(self, queue: int, chain: Chain, error: BadPayload) -> int | None:
        written = super().on_bad_payload(queue, chain, error)
        self._count_in_flight(queue, self.role(queue), written)
        return written

    def _count_in_flight(self, queue: int, role: Role | None, written: int | None) -> None:
        if written is None:
            self.in_flight[queue] += 1
            check(
                role in ONE_IN_FLIGHT and self.in_flight[queue] == 1,
                f"{role} has {self.in_flight[queue]} buffers in flight",
            )

    def _named(self, role: Role | None, chain: Chain) -> Pages | None:
        """Return the pages that may be discarded for this buffer; None if it must be refused."""
        if role in (Role.INFLATE, Role.DEFLATE):
            named = page_oracle.NAMED_BY[self.dialect.name](chain.readable, RAM_PAGES)
            return named if role is Role.INFLATE or named is None else frozenset()
        if role is Role.REPORTING:
            return page_oracle.wholly_inside(chain.writable_segments)
        return frozenset()

    def complete(self, queue: int, chain: Chain, written: int = 0) -> None:
        ring = self.queues[queue].ring
        before = ring.next_used if ring is not None else 0
        super().complete(queue, chain, written)
        if ring is not None and ring.next_used != before:
            self.in_flight[queue] -= 1
            check(self.in_flight[queue] >= 0, "a buffer was returned that was not in flight")


class CheckedBalloonBoard(CheckedBoard):
    """A board with such a balloon that offers `offered`, on `ram` or RAM of its own."""

    def __init__(self, dialect: Dialect, offered: int, ram: CheckedRam | None = None) -> None:
        tracer = RecordingTracer()
        self.checked_balloon = CheckedBalloon(dialect, ram or CheckedRam(), tracer, offered)
        super().__init__(self.checked_balloon, tracer)
