# SPDX-License-Identifier: Apache-2.0
"""The statistics queue (VIRTIO 1.2, section 5.5.6.3).

The driver keeps one buffer with its latest report on the queue; returning the buffer means asking
for fresh statistics.
"""

from __future__ import annotations

from devices.balloon.dialects import GiveBack
from devices.errors import BadPayload
from pyvmm_native.ring import Chain

MAX_STATS_BYTES = 4096
"""Longest report taken: hundreds of 10-byte entries, where drivers send about 16."""


class StatsQueue:
    """Holds the driver's buffer."""

    def __init__(self, give_back: GiveBack) -> None:
        self._give_back = give_back
        self._buffer: Chain | None = None

    def serve(self, chain: Chain) -> None:
        if self._buffer is not None:
            raise BadPayload("a statistics buffer is already held")
        self._buffer = chain

    def reset(self) -> None:
        """The driver took its buffer back."""
        self._buffer = None
