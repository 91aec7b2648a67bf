# SPDX-License-Identifier: Apache-2.0
"""Timers in a device's saved state.

A deadline is saved as the nanoseconds that remain, because the clocks of two hosts are unrelated;
the virtual clock stops while the guest is paused, so no time is lost.
"""

from __future__ import annotations

from devices.ports import Timer
from devices.state import Fields, Payload, Restore

MAX_DELAY_NS = 1 << 62
"""Longest delay in a saved state, about 146 years."""


def save_timer(timer: Timer) -> Payload:
    """Return the state of `timer`: the nanoseconds that remain, if it is armed."""
    remaining_ns = timer.remaining_ns
    return {"remaining_ns": [] if remaining_ns is None else [remaining_ns]}


def check_timer(fields: Fields, timer: Timer) -> Restore:
    """Check what `save_timer` returned; restoring arms `timer`, or cancels it."""
    remaining_ns = fields.numbers("remaining_ns", at_most=1, below=MAX_DELAY_NS)

    def restore() -> None:
        if remaining_ns:
            timer.arm(remaining_ns[0])
        else:
            timer.cancel()

    return restore
