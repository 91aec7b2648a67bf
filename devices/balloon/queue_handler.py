# SPDX-License-Identifier: Apache-2.0
"""The interface of a queue handler, which serves the buffers of one of the balloon's queues.

The device creates a handler for every queue that it offers, whether or not the driver accepts the
queue's feature. `BalloonDevice` finds the handler of a queue by its role; everything else that
depends on the queue is the handler's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from devices.errors import BadPayload
from devices.state import Fields, Payload, Restore
from pyvmm_native.ring import Chain, SplitQueue


class QueueHandler(ABC):
    """The balloon's side of one queue."""

    max_readable_bytes: int
    """Device-readable bytes of the longest buffer that can be valid."""

    @abstractmethod
    def serve(self, chain: Chain) -> int | None:
        """Act on one buffer; as `VirtioDevice.serve`.

        A buffer that is kept (None) is returned to the driver with a `CompleteBuffer`.
        """

    def on_bad_payload(self, chain: Chain, error: BadPayload) -> int | None:
        """As `VirtioDevice.on_bad_payload`; by default the buffer is returned, length 0."""
        return 0

    def reset(self) -> None:  # noqa: B027 (most queues have nothing in flight)
        """Drop all buffers in flight: the device or its queue was reset."""

    @abstractmethod
    def save_state(self) -> Payload:
        """Return the counters and the buffers in flight."""

    @abstractmethod
    def check_state(self, fields: Fields, ring: SplitQueue | None) -> Restore:
        """Check a saved state; `ring` is the queue's, or None if the queue is not live."""
