# SPDX-License-Identifier: Apache-2.0
"""How a migration shall go, and how far it is.

The migration's thread writes a `Progress`, the control socket reads it; every field is a number or
a text of its own, so a reader sees each as it was at some moment.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from pyvmm_native import PAGE_BYTES

_SIGNIFICANT_BYTES = 1 << 20
"""What is shorter says more about latency than about bandwidth."""
_MIN_SECONDS = 1e-6


@dataclass(frozen=True)
class Settings:
    """What somebody wants of a migration."""

    max_bandwidth: int = 0
    """Bytes per second while the guest runs; 0 is as many as possible."""
    downtime_limit_s: float = 0.3
    """How long the guest may stand still for the rest of its memory, as far as can be foreseen."""
    unused_timeout_s: float = 5.0
    """How long the guest may take to say which pages it does not use."""
    auto_converge: bool = False
    """Slow the guest down if the migration would not come to an end otherwise.

    The numbers are per cent, their meaning is in `pyvmm.migration.auto_converge`.
    """
    throttle_trigger_threshold: int = 50
    cpu_throttle_initial: int = 20
    cpu_throttle_increment: int = 10
    max_cpu_throttle: int = 99


@dataclass
class Progress:
    """Figures of one migration."""

    begun_at: float = field(default_factory=time.monotonic)
    """By time.monotonic(); so is `ended_at`."""
    ended_at: float | None = None
    unused_how: str = ""
    skipped_pages: int = 0
    """Unused by the guest's word, and not sent in the first round."""
    full_pages: int = 0
    """Sent with their contents; a page counts again whenever it is."""
    zero_pages: int = 0
    """Found to be zeros, and not sent."""
    collected_pages: int = 0
    """Had to be sent when the log was last looked at, of which `remaining_pages` are left."""
    remaining_pages: int = 0
    rounds: int = 0
    sent_bytes: int = 0
    bandwidth: float = 0.0
    """Bytes per second at which the destination took in the last round worth measuring.

    A short round is worth it only if it was faster: what it shows to be possible is possible.
    """
    dirty_pages_rate: int = 0
    """Pages that have changed per second of the last round."""
    throttle_percentage: int = 0
    """How much of their time the guest's processors have to rest at the moment."""
    downtime_s: float | None = None

    @property
    def expected_downtime_s(self) -> float:
        """What sending all that the last look at the log has found takes, sent by now or not."""
        if not self.collected_pages:
            return 0.0
        return self.collected_pages * PAGE_BYTES / max(self.bandwidth, _MIN_SECONDS)

    @property
    def total_s(self) -> float:
        """How long it has taken so far, or did."""
        return (time.monotonic() if self.ended_at is None else self.ended_at) - self.begun_at

    def selected(self, how: str, skipped_pages: int) -> None:
        """The guest was asked for unused pages."""
        self.unused_how, self.skipped_pages = how, skipped_pages

    def collected(self, pages: int, seconds: float) -> None:
        """So many pages remain; they have changed within so many seconds, unless those are 0."""
        self.collected_pages = self.remaining_pages = pages
        if seconds:
            self.dirty_pages_rate = round(pages / seconds)

    def done(self, pages: int, full_pages: int) -> None:
        """So many pages have been dealt with, `full_pages` of them by sending them."""
        self.full_pages += full_pages
        self.zero_pages += pages - full_pages
        self.remaining_pages -= pages

    def round_done(self, sent_bytes: int, seconds: float) -> None:
        """A round has arrived, of so many bytes, after so many seconds."""
        self.rounds += 1
        bandwidth = sent_bytes / max(seconds, _MIN_SECONDS)
        if sent_bytes >= _SIGNIFICANT_BYTES or bandwidth > self.bandwidth:
            self.bandwidth = bandwidth
