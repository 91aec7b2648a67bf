# SPDX-License-Identifier: Apache-2.0
"""A board that checks its device's invariants at every step, for any guest.

A violation raises `Finding`. For every device:

* the device raises the policy's errors only; any other exception is a finding by itself;
* work is bounded: a call serves at most `max_served` buffers, and an idle guest is served
  completely in as many calls as it has buffers;
* each buffer taken is returned, or in flight where the device's protocol says so, or the device is
  in NEEDS_RESET;
* the device writes only to pages that the guest provided for it: all others keep their pattern;
* host notifiers are assigned for live queues only.

`checked_balloon` and `checked_console` have the devices, and what further holds for them.

Guest RAM is small: 16 pages for the driver's rings and requests, then pages with a pattern, with a
boundary between two regions, a hole, and a region above 4 GiB.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

from devices.testing.board import Board
from devices.testing.ram import AnonymousRam
from devices.testing.recorders import RecordingTracer
from devices.virtio.device import BUFFERS_PER_CALL, VirtioDevice
from devices.virtio.queue import DeviceQueue
from devices.virtio.status import Status
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns
from tests.fuzz import page_oracle
from tests.fuzz.page_oracle import Pages

DRIVER_BYTES = 16 * PAGE_BYTES
REGIONS = (
    (0, DRIVER_BYTES),
    (DRIVER_BYTES, 32 * PAGE_BYTES),
    (64 * PAGE_BYTES, 8 * PAGE_BYTES),
    (1 << 32, 8 * PAGE_BYTES),
)
PATTERN = 0xA5


class Finding(AssertionError):
    """An invariant does not hold."""


def check(holds: object, message: str) -> None:
    """Raise `Finding` unless `holds`."""
    if not holds:
        raise Finding(message)


class CheckedRam(AnonymousRam):
    """RAM that checks that only the pages in `allowed` are discarded, and records them."""

    def __init__(self) -> None:
        super().__init__(*REGIONS)
        self.allowed: Pages = frozenset()
        self.discarded_pfns: Pages = frozenset()
        """Pages discarded while the current buffer is served."""
        self.touched: set[int] = set()
        """Pages that may have lost their pattern."""
        self.on_access: Callable[[], None] = lambda: None
        self._pattern = [bytes([PATTERN]) * len(area) for _, area in self.maps]
        for _, area in self.maps[1:]:
            area[:] = bytes([PATTERN]) * len(area)

    @property
    def driver_area(self) -> mmap.mmap:
        """The memory of the driver's rings and requests, at GPA 0."""
        return self.maps[0][1]

    def discard(self, runs: PageRuns) -> int:
        pages = frozenset(pfn for start, count in runs for pfn in range(start, start + count))
        check(pages <= self.allowed, f"discards {sorted(pages - self.allowed)}")
        self.discarded_pfns |= pages
        self.touched |= pages
        done = super().discard(runs)
        check(done == PAGE_BYTES * len(pages), f"{done} bytes discarded for {len(pages)} pages")
        self.on_access()
        return done

    def check_and_refill(self) -> None:
        """Check the pattern of all pages that are not `touched`, then restore all of RAM."""
        for (gpa, area), pattern in zip(self.maps[1:], self._pattern[1:], strict=True):
            if area[:] == pattern:
                continue
            for offset in range(0, len(area), PAGE_BYTES):
                page = area[offset : offset + PAGE_BYTES]
                if page != pattern[:PAGE_BYTES]:
                    pfn = (gpa + offset) // PAGE_BYTES
                    check(
                        pfn in self.touched,
                        f"page {pfn:#x} changed and was not the device's to write",
                    )
                    area[offset : offset + PAGE_BYTES] = pattern[:PAGE_BYTES]
        self.driver_area[:] = bytes(DRIVER_BYTES)


class CheckedDevice(VirtioDevice):
    """The checks that hold for every device, to be mixed into a device type before it.

    `in_flight` counts the buffers that may be in flight, by queue; the device type keeps it.
    """

    max_served = BUFFERS_PER_CALL
    """Most buffers in one call."""

    def __init__(self, ram: CheckedRam, *arguments: Any, **keywords: Any) -> None:
        self.ram = ram
        self.in_flight = [0] * 8
        self.served = 0
        super().__init__(*arguments, **keywords)

    def must_be_empty(self, queue: DeviceQueue) -> bool:
        """Return whether an idle device has taken all buffers of a live queue."""
        return True

    def process_queue(self, index: int) -> bool:
        self.served = 0
        more = super().process_queue(index)
        check(self.served <= self.max_served, f"{self.served} buffers in one call")
        self.check_buffers()
        return more

    def write_status(self, value: int) -> None:
        super().write_status(value)
        self._mark_used_rings()

    def enable_queue(self, index: int) -> None:
        super().enable_queue(index)
        self._mark_used_rings()

    def reset(self) -> None:
        super().reset()
        self.in_flight = [0] * 8

    def reset_queue(self, index: int) -> None:
        super().reset_queue(index)
        self.in_flight[index] = 0

    def _mark_used_rings(self) -> None:
        """Mark the pages of the used rings, to which the device may write."""
        for queue in self.queues:
            if queue.ring is not None:
                used = (queue.device_gpa, 6 + 8 * queue.size)
                self.ram.touched |= page_oracle.touched_by([used])

    def check_buffers(self) -> None:
        """Check that each buffer taken is returned or counted as in flight."""
        for queue, in_flight in zip(self.queues, self.in_flight, strict=False):
            ring = queue.ring
            if ring is not None and self.running:
                taken = (ring.next_avail - ring.next_used) & 0xFFFF
                check(
                    taken == in_flight,
                    f"{taken} buffers of {queue.spec.name} taken, {in_flight} in flight",
                )


class CheckedBoard(Board):
    """A board with `device`, whose memory is `device.ram`."""

    def __init__(self, device: CheckedDevice, tracer: RecordingTracer) -> None:
        self.checked_device = device
        self.ram = device.ram
        super().__init__(device, tracer)

    def serve_all(self, queue: int) -> None:
        """Serve one queue of an idle guest completely.

        Where a used ring overlaps the available ring, the device makes buffers available to
        itself: that never ends, but each call does.
        """
        limit = 2 + 2 * self.device.queues[queue].size
        while self.transport.serve_queue(queue):
            limit -= 1
            if not limit:
                check(self._feeds_itself(queue), f"queue {queue} is never idle")
                return

    def _feeds_itself(self, queue: int) -> bool:
        """Return whether some used ring overlaps the available ring of `queue`."""
        fed = self.device.queues[queue]
        start, end = fed.driver_gpa, fed.driver_gpa + 6 + 2 * fed.size
        return any(
            each.device_gpa < end and start < each.device_gpa + 6 + 8 * each.size
            for each in self.device.queues
            if each.ring is not None
        )

    def check_idle(self) -> None:
        """Serve all queues completely, and check the final state of the device and of RAM."""
        self.ram.on_access = lambda: None
        for queue in self.device.queues:
            self.serve_all(queue.index)
            if self._feeds_itself(queue.index):
                continue
            if self.device.running and self.function.bus_master_enabled and queue.ring is not None:
                served = not self.checked_device.must_be_empty(queue) or queue.ring.pending == 0
                check(served, f"{queue.spec.name} is not served")
        self.notifiers.notified.clear()
        self.checked_device.check_buffers()
        bar_gpa = self.function.bar_gpa(0)
        live = {
            queue.index: bar_gpa + 0x3000 + 4 * queue.index
            for queue in self.device.queues
            if self.device.running and queue.ring is not None and bar_gpa is not None
        }
        check(
            self.notifiers.assigned == live,
            f"host notifiers at {self.notifiers.assigned}, queues at {live}",
        )
        broken = self.device.status & Status.DEVICE_NEEDS_RESET
        check(not broken or not self.device.running, "keeps running in NEEDS_RESET")
        self.ram.check_and_refill()
