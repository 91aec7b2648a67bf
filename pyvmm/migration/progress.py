# SPDX-License-Identifier: Apache-2.0
"""Settings of a migration, and its progress.

The migration's thread writes a `MigrationProgress` and the event loop reads it, without a lock:
each field is one number or string, so a reader sees a consistent value of each.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from devices.ports import Tracer
from pyvmm_native import PAGE_BYTES

_SIGNIFICANT_BYTES = 1 << 20
"""A round with fewer bytes measures latency more than bandwidth."""
_MIN_SECONDS = 1e-6


@dataclass(frozen=True)
class Settings:
    """Parameters of a migration."""

    max_bandwidth: int = 0
    """Bytes per second while the guest runs; 0 is no limit."""
    downtime_limit_s: float = 0.3
    """Longest expected time for which the guest may be paused while the rest is sent."""
    unused_timeout_s: float = 5.0
    """Time-out of the request for unused pages; with 0, the guest is not asked."""
    checksum: str = "auto"
    """The checksum of pages, one of `pyvmm_native.checksum.CHECKSUMS`, or the fastest one
    (`pyvmm.migration.checksum_choice.AUTO`)."""
    streams: int = 1
    """Connections that carry pages; with more than one, none of them is the first connection."""
    auto_converge: bool = False
    """Throttle the vCPUs if the migration would not come to an end otherwise.

    The numbers are per cent, their meaning is in `pyvmm.migration.auto_converge`.
    """
    throttle_trigger_threshold: int = 50
    cpu_throttle_initial: int = 20
    cpu_throttle_increment: int = 10
    max_cpu_throttle: int = 99


class DowntimeSteps:
    """Seconds of the steps of a switchover, as the source sees them, in their order.

        stop     until the vCPUs have left the guest
        save     until the state of the machine is saved
        pages    until the destination has acknowledged the last round, whose state follows it
        restore  until the destination has restored the state
        start    from the commit until the destination runs the guest

    Threads: migration; other threads read only.
    """

    def __init__(self) -> None:
        self._begun_at = self._step_begun_at = time.monotonic()
        self.steps: dict[str, float] = {}

    def step(self, name: str) -> None:
        """Note that the step `name` has ended, and the next begins."""
        now = time.monotonic()
        self.steps = {**self.steps, name: now - self._step_begun_at}
        self._step_begun_at = now

    @property
    def seconds(self) -> float:
        """Seconds since the switchover began."""
        return time.monotonic() - self._begun_at


@dataclass
class MigrationProgress:
    """Figures of one migration.

    Threads: migration; other threads read only.
    """

    begun_at: float = field(default_factory=time.monotonic)
    """By time.monotonic(), like `ended_at`."""
    ended_at: float | None = None
    checksum: str = ""
    """The checksum of pages, once both sides agree on it."""
    unused_how: str = ""
    """The request that the guest answered, or the reason why it has not."""
    skipped_pages: int = 0
    """Unused pages that were left out of the first round."""
    full_pages: int = 0
    """Pages sent with their contents, counted each time."""
    zero_pages: int = 0
    """Pages found to be zeros, and not sent."""
    collected_pages: int = 0
    """Pages to be sent when the log was last collected; `remaining_pages` of them are left."""
    remaining_pages: int = 0
    rounds: int = 0
    sent_bytes: int = 0
    bandwidth: float = 0.0
    """Bytes per second at which the destination took in the last significant round.

    A short round counts only if it was faster, as that shows what is possible.
    """
    dirty_pages_rate: int = 0
    """Pages that changed per second of the last round."""
    throttle_percentage: int = 0
    """Percentage of their time for which the vCPUs are currently kept out of the guest."""
    downtime_s: float | None = None
    downtime: DowntimeSteps | None = None
    """The steps of the last switchover; a step that has not ended is missing."""
    tracer: Tracer | None = None
    """Receives an event at the end of each round."""

    @property
    def expected_downtime_s(self) -> float:
        """The time to send all pages that the log named last, whether sent by now or not."""
        if not self.collected_pages:
            return 0.0
        return self.collected_pages * PAGE_BYTES / max(self.bandwidth, _MIN_SECONDS)

    @property
    def total_s(self) -> float:
        """Seconds so far, or until the end."""
        return (time.monotonic() if self.ended_at is None else self.ended_at) - self.begun_at

    def selected(self, unused_how: str, skipped_pages: int) -> None:
        """Note the selection of the first round's pages."""
        self.unused_how, self.skipped_pages = unused_how, skipped_pages

    def collected(self, pages: int, seconds: float) -> None:
        """Note that `pages` are to be sent, which have changed within `seconds` unless it is 0."""
        self.collected_pages = self.remaining_pages = pages
        if seconds:
            self.dirty_pages_rate = round(pages / seconds)

    def done(self, pages: int, full_pages: int) -> None:
        """Note that `pages` have been dealt with, `full_pages` of them by sending them."""
        self.full_pages += full_pages
        self.zero_pages += pages - full_pages
        self.remaining_pages -= pages

    def downtime_begins(self) -> DowntimeSteps:
        """Note that the guest is about to be paused for the switchover."""
        self.downtime = DowntimeSteps()
        return self.downtime

    def round_done(self, sent_bytes: int, seconds: float) -> None:
        """Note that the destination has a round of `sent_bytes`, which took `seconds`."""
        self.rounds += 1
        bandwidth = sent_bytes / max(seconds, _MIN_SECONDS)
        if sent_bytes >= _SIGNIFICANT_BYTES or bandwidth > self.bandwidth:
            self.bandwidth = bandwidth
        if self.tracer is not None:
            self.tracer.event(
                "migration.round",
                round=self.rounds,
                sent_bytes=sent_bytes,
                duration_us=round(seconds * 1e6),
                dirty_pages_rate=self.dirty_pages_rate,
            )
