# SPDX-License-Identifier: Apache-2.0
"""A board that watches its balloon for what no guest may bring it to do.

Checked at every step, whoever drives it (`Finding` when one does not hold):

* nothing but the policy's errors: any other exception leaves the device and is a finding by itself;
* bounded work: a call serves at most `BUFFERS_PER_CALL` buffers, and a guest that lies still is
  served to the end in as many calls as it has buffers;
* no page is discarded that the request being served does not name, as the oracle reads it, and
  none because of a request that must be refused;
* a buffer that was taken is returned, or kept by a queue whose protocol says so (one on the
  statistics queue, one on the misc queue), or the device is in NEEDS_RESET;
* nothing is written to pages that the guest did not give for it: they keep their pattern;
* notifications are caught only for queues that are live.

Guest RAM is small: 16 pages for the driver's rings and requests, then pages with a pattern, with a
seam between two regions, a hole, and a region above 4 GiB.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable

from devices.balloon.device import BalloonDevice
from devices.balloon.dialects import Dialect, Role
from devices.errors import BadPayload
from devices.testing.board import Board
from devices.testing.ram import AnonymousRam
from devices.testing.recorders import RecordingTracer
from devices.virtio.device import BUFFERS_PER_CALL
from devices.virtio.status import Status
from pyvmm_native import PAGE_BYTES
from pyvmm_native.ring import Chain
from pyvmm_native.runs import PageRuns
from tests.fuzz import oracle
from tests.fuzz.oracle import Pages

DRIVER_BYTES = 16 * PAGE_BYTES
REGIONS = (
    (0, DRIVER_BYTES),
    (DRIVER_BYTES, 32 * PAGE_BYTES),
    (64 * PAGE_BYTES, 8 * PAGE_BYTES),
    (1 << 32, 8 * PAGE_BYTES),
)
RAM_PAGES = oracle.pages_of_regions(REGIONS)
PATTERN = 0xA5
KEEPS_ONE = (Role.STATS, Role.MISC)


class Finding(AssertionError):
    """An invariant does not hold."""


def check(holds: object, what: str) -> None:
    if not holds:
        raise Finding(what)


class WatchedRam(AnonymousRam):
    """RAM that discards only what `allowed` names, and remembers it."""

    def __init__(self) -> None:
        super().__init__(*REGIONS)
        self.allowed: Pages = frozenset()
        self.gone: Pages = frozenset()
        """Pages discarded while the present buffer is served."""
        self.touched: set[int] = set()
        """Pages that need not have their pattern any more."""
        self.moment: Callable[[], None] = lambda: None
        self._pattern = [bytes([PATTERN]) * len(area) for _, area in self.maps]
        for _, area in self.maps[1:]:
            area[:] = bytes([PATTERN]) * len(area)

    @property
    def driver_area(self) -> mmap.mmap:
        """The guest's own memory, from gpa 0 on."""
        return self.maps[0][1]

    def discard(self, runs: PageRuns) -> int:
        pages = frozenset(pfn for start, count in runs for pfn in range(start, start + count))
        check(pages <= self.allowed, f"discards {sorted(pages - self.allowed)}")
        self.gone |= pages
        self.touched |= pages
        done = super().discard(runs)
        check(done == PAGE_BYTES * len(pages), f"{done} bytes discarded for {len(pages)} pages")
        self.moment()
        return done

    def check_and_refill(self) -> None:
        """Every page that was not given away is intact; then everything as at the start."""
        for (gpa, area), pattern in zip(self.maps[1:], self._pattern[1:], strict=True):
            if area[:] == pattern:
                continue
            for offset in range(0, len(area), PAGE_BYTES):
                page = area[offset : offset + PAGE_BYTES]
                if page != pattern[:PAGE_BYTES]:
                    pfn = (gpa + offset) // PAGE_BYTES
                    check(pfn in self.touched, f"page {pfn:#x} changed and nobody gave it away")
                    area[offset : offset + PAGE_BYTES] = pattern[:PAGE_BYTES]
        self.driver_area[:] = bytes(DRIVER_BYTES)


class WatchedBalloon(BalloonDevice):
    """A balloon that checks what it does for each buffer."""

    ram: WatchedRam

    def __init__(
        self, dialect: Dialect, ram: WatchedRam, tracer: RecordingTracer, offered: int
    ) -> None:
        self.ram = ram
        self.kept = [0] * 8
        self.served = 0
        super().__init__(dialect, ram, tracer, offered=offered)

    def role(self, queue: int) -> Role | None:
        return self.roles.get(queue)

    def serve(self, queue: int, chain: Chain) -> int | None:
        ram, role = self.ram, self.role(queue)
        self.served += 1
        named = self._named(role, chain)
        ram.allowed, ram.gone = named or frozenset(), frozenset()
        ram.touched |= oracle.touched_by(chain.writable_segments)
        ram.moment()
        try:
            written = super().serve(queue, chain)
        except BadPayload as error:
            check(not ram.gone, "a request was refused that had discarded pages")
            must_serve = role in (Role.INFLATE, Role.DEFLATE) and named is not None
            check(not must_serve, f"{role} of {sorted(named or ())} refused: {error}")
            raise
        finally:
            ram.allowed = frozenset()
        check(named is not None, f"bad {role} request accepted")
        if role is Role.INFLATE:
            check(ram.gone == named, f"{sorted(named or ())} named, {sorted(ram.gone)} discarded")
        self._note_kept(queue, role, written)
        return written

    def on_bad_payload(self, queue: int, chain: Chain, error: BadPayload) -> int | None:
        written = super().on_bad_payload(queue, chain, error)
        self._note_kept(queue, self.role(queue), written)
        return written

    def _note_kept(self, queue: int, role: Role | None, written: int | None) -> None:
        if written is None:
            self.kept[queue] += 1
            check(role in KEEPS_ONE and self.kept[queue] == 1, f"{role} keeps {self.kept[queue]}")

    def _named(self, role: Role | None, chain: Chain) -> Pages | None:
        """Pages that may be discarded for this buffer; None if it has to be refused."""
        if role in (Role.INFLATE, Role.DEFLATE):
            decode = (
                oracle.named_by_bitmap if self.dialect.name == "bitmap" else (oracle.named_by_pfns)
            )
            named = decode(chain.readable, RAM_PAGES)
            return named if role is Role.INFLATE or named is None else frozenset()
        if role is Role.REPORTING:
            return oracle.wholly_inside(chain.writable_segments)
        return frozenset()

    def complete(self, queue: int, chain: Chain, written: int = 0) -> None:
        ring = self.queues[queue].ring
        before = ring.next_used if ring is not None else 0
        super().complete(queue, chain, written)
        if ring is not None and ring.next_used != before:
            self.kept[queue] -= 1
            check(self.kept[queue] >= 0, "a buffer came back that was not kept")

    def process_queue(self, index: int) -> bool:
        self.served = 0
        more = super().process_queue(index)
        check(self.served <= BUFFERS_PER_CALL, f"{self.served} buffers in one call")
        self.check_buffers()
        return more

    def write_status(self, value: int) -> None:
        super().write_status(value)
        self._note_rings()

    def enable_queue(self, index: int) -> None:
        super().enable_queue(index)
        self._note_rings()

    def reset(self) -> None:
        super().reset()
        self.kept = [0] * 8

    def reset_queue(self, index: int) -> None:
        super().reset_queue(index)
        self.kept[index] = 0

    def _note_rings(self) -> None:
        """The device writes used rings, wherever the guest put them."""
        for queue in self.queues:
            if queue.ring is not None:
                used = (queue.device_gpa, 6 + 8 * queue.size)
                self.ram.touched |= oracle.touched_by([used])

    def check_buffers(self) -> None:
        """What was taken and not returned is what is kept."""
        for queue, kept in zip(self.queues, self.kept, strict=False):
            ring = queue.ring
            if ring is not None and self.running:
                out = (ring.next_avail - ring.next_used) & 0xFFFF
                check(out == kept, f"{out} buffers of {queue.spec.name} out, {kept} kept")


class WatchedBoard(Board):
    """A board with such a balloon, offering `offered`; over `ram`, or RAM of its own."""

    ram: WatchedRam

    def __init__(self, dialect: Dialect, offered: int, ram: WatchedRam | None = None) -> None:
        self.ram = ram or WatchedRam()
        tracer = RecordingTracer()
        super().__init__(WatchedBalloon(dialect, self.ram, tracer, offered), tracer)

    @property
    def watched(self) -> WatchedBalloon:
        assert isinstance(self.device, WatchedBalloon)
        return self.device

    def serve_to_the_end(self, queue: int) -> None:
        """Serve one queue of a guest that lies still.

        Where the device writes a used ring over the available ring, it makes itself work: that has
        no end, but each call has.
        """
        limit = 2 + 2 * self.device.queues[queue].size
        while self.transport.serve_queue(queue):
            limit -= 1
            if not limit:
                check(self._feeds_itself(queue), f"queue {queue} does not come to an end")
                return

    def _feeds_itself(self, queue: int) -> bool:
        """Whether some used ring lies over the available ring of `queue`."""
        fed = self.device.queues[queue]
        start, end = fed.driver_gpa, fed.driver_gpa + 6 + 2 * fed.size
        return any(
            each.device_gpa < end and start < each.device_gpa + 6 + 8 * each.size
            for each in self.device.queues
            if each.ring is not None
        )

    def check_at_rest(self) -> None:
        """Nothing is left to do, and nothing is left undone."""
        self.ram.moment = lambda: None
        for queue in self.device.queues:
            self.serve_to_the_end(queue.index)
            if self._feeds_itself(queue.index):
                continue
            if self.device.running and self.function.bus_master_enabled and queue.ring is not None:
                check(queue.ring.pending == 0, f"{queue.spec.name} is not served")
        self.notifiers.notified.clear()
        self.watched.check_buffers()
        bar_gpa = self.function.bar_gpa(0)
        live = {
            queue.index: bar_gpa + 0x3000 + 4 * queue.index
            for queue in self.device.queues
            if self.device.running and queue.ring is not None and bar_gpa is not None
        }
        check(
            self.notifiers.assigned == live,
            f"doorbells at {self.notifiers.assigned}, queues at {live}",
        )
        broken = self.device.status & Status.DEVICE_NEEDS_RESET
        check(not broken or not self.device.running, "goes on in NEEDS_RESET")
        self.ram.check_and_refill()
