# SPDX-License-Identifier: Apache-2.0
"""The statistics queue (VIRTIO 1.2, section 5.5.6.3): the device asks, the driver reports.

The conversation runs backwards. The driver puts one buffer with a report on the queue as soon as it
starts; the device keeps the buffer, and giving it back is the question, upon which the driver fills
it anew. So a buffer does not go back unasked, not even one that makes no sense: that is counted and
traced as any bad payload, but kept. Otherwise a driver with a bug, and not only a hostile one,
would answer again at once and forever. A second buffer, which a driver must not have on the queue
(5.5.6.3.1), is a bad payload and does go back: what a driver can make the device keep is bounded.

A report is an array of packed `struct virtio_balloon_stat { le16 tag; le64 val; }` in any order.
Tags not known here are kept by number and acted on by nobody (5.5.6.3.2); where a tag comes twice
the last value counts. Tags that do not come are absent, which is not the same as 0.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from devices.balloon.dialects import CompleteBuffer
from devices.balloon.stat_tags import STATISTICS
from devices.errors import BadPayload
from devices.state import Fields, Payload, Restore
from devices.virtio.queue import check_in_flight, save_in_flight
from pyvmm_native.ring import Chain, SplitQueue

ENTRY = struct.Struct("<HQ")
MAX_STATS_BYTES = 4096
"""Longest report taken: hundreds of entries, where drivers send about 16."""


class StatsReport(NamedTuple):
    """What the driver said once."""

    values: dict[int, int]
    """By tag, in the driver's order."""
    questions: int
    """Questions asked before it came. A report answers the last of them: whoever asked question N
    has news when this is N or more, and old news when it is less."""

    @property
    def known(self) -> dict[str, int | None]:
        """Every statistic that has a name; None for those which are absent."""
        return {each.name: self.values.get(tag) for tag, each in enumerate(STATISTICS)}

    @property
    def unknown(self) -> dict[int, int]:
        """Values by tag, for the tags without a name."""
        return {tag: value for tag, value in self.values.items() if tag >= len(STATISTICS)}


def decode(payload: bytes) -> dict[int, int]:
    """Values by tag; raises BadPayload for what is no array of entries."""
    if len(payload) % ENTRY.size:
        raise BadPayload(f"{len(payload)} bytes are not an array of {ENTRY.size}-byte statistics")
    return dict(ENTRY.iter_unpack(payload))


class StatsQueue:
    """Keeps the driver's buffer; `on_report` gets every good report, asked for or not."""

    def __init__(self, give_back: CompleteBuffer) -> None:
        self._complete_with = give_back
        self._kept: Chain | None = None
        self.questions = 0
        """Questions asked since the device was made."""
        self.on_report: Callable[[StatsReport], None] = lambda report: None

    def serve(self, chain: Chain) -> None:
        if self._kept is not None:
            raise BadPayload("a statistics buffer is already held")
        values = decode(chain.readable)
        self._kept = chain
        self.on_report(StatsReport(values, self.questions))

    def on_bad_payload(self, chain: Chain) -> int | None:
        """Keep the buffer of a bad report to request the next one with, unless one is kept."""
        if self._kept is not None:
            return 0
        self._kept = chain
        return None

    def ask(self) -> bool:
        """Ask for a fresh report; False if there is no buffer to ask with.

        That is so until the driver has started, and as long as an earlier question is open.
        """
        if self._kept is None:
            return False
        chain, self._kept = self._kept, None
        self.questions += 1
        self._complete_with(chain, 0)
        return True

    def reset(self) -> None:
        """The driver took its buffer back."""
        self._kept = None

    def save_state(self) -> Payload:
        """The driver's buffer. The report to an open question comes like one that is not asked."""
        return {"questions": self.questions, "kept": save_in_flight(self._kept)}

    def check_state(self, fields: Fields, ring: SplitQueue | None) -> Restore:
        """As `QueueHandler.check_state`."""
        questions = fields.counter("questions")
        kept = check_in_flight(fields, "kept", ring)

        def restore() -> None:
            self.questions, self._kept = questions, kept

        return restore
