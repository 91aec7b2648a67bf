# SPDX-License-Identifier: Apache-2.0
"""Solution of chapter 6: a device that interrupts when its used index passes `used_event`.

The buffer that the driver waits for is among those returned if its distance from the new index is
less than the number of buffers. Both are differences modulo 2^16, so the wrap does no harm.
"""

from __future__ import annotations


class UsedNotifications:
    """Decides for a device when to interrupt, with VIRTIO_F_EVENT_IDX.

    The driver writes to `used_event` the index of the used ring whose buffer it waits for (2.7.7).
    """

    def __init__(self) -> None:
        self.decided_at = 0
        """The used index at the last decision, modulo 2^16."""

    def should_interrupt(self, used_idx: int, used_event: int) -> bool:
        """Return whether the device interrupts for the buffers returned since the last call.

        `used_idx` is the index at which the next buffer will be returned; it is greater than at the
        last call by the number of buffers returned since, modulo 2^16.
        """
        before, self.decided_at = self.decided_at, used_idx
        return (used_idx - used_event - 1) & 0xFFFF < (used_idx - before) & 0xFFFF
