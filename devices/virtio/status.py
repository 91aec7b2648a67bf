# SPDX-License-Identifier: Apache-2.0
"""The device status field as a state machine (VIRTIO 1.2, sections 2.1 and 3.1).

The driver climbs through the states of `NEXT` by writing ever more bits; it never takes one back
(2.1.1) except by writing 0, which resets the device. `step` answers what the field becomes for a
value the driver writes. DEVICE_NEEDS_RESET is the device's own bit: the driver can neither set nor
clear it, and while it or FAILED is set the only way on is a reset.
"""

from __future__ import annotations

from enum import IntFlag


class Status(IntFlag):
    """Bits of the device status field (VIRTIO 1.2, 2.1)."""

    RESET = 0
    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


FOUND = Status.ACKNOWLEDGE
DRIVEN = FOUND | Status.DRIVER
NEGOTIATED = DRIVEN | Status.FEATURES_OK
LIVE = NEGOTIATED | Status.DRIVER_OK

NEXT: dict[Status, frozenset[Status]] = {
    Status.RESET: frozenset({FOUND, DRIVEN}),
    FOUND: frozenset({DRIVEN}),
    DRIVEN: frozenset({NEGOTIATED}),
    NEGOTIATED: frozenset({LIVE}),
    LIVE: frozenset(),
}
"""Where a driver may go from each state, FAILED aside (VIRTIO 1.2, 3.1.1 gives the order).

Setting ACKNOWLEDGE and DRIVER with one write skips no step that the device could notice, and
drivers do it.
"""


def is_running(status: Status) -> bool:
    """Whether queues may be used: DRIVER_OK is set and neither side has given up."""
    stopped = Status.DEVICE_NEEDS_RESET | Status.FAILED
    return bool(status & Status.DRIVER_OK) and not status & stopped


def is_possible(value: int) -> bool:
    """Whether the field can hold `value`: a state of `NEXT`, and whether it was given up there.

    Rings are only looked at after DRIVER_OK, so DEVICE_NEEDS_RESET is not set before.
    """
    state = Status(value) & ~(Status.DEVICE_NEEDS_RESET | Status.FAILED)
    return state in NEXT and (state == LIVE or not value & Status.DEVICE_NEEDS_RESET)


def step(current: Status, written: int) -> Status | None:
    """The status field after the driver wrote `written`, or None for a transition not allowed.

    A refused transition leaves the field as it is; the driver sees that when it reads back.
    """
    if written == 0:
        return Status.RESET
    kept = current & Status.DEVICE_NEEDS_RESET
    before = current & ~Status.DEVICE_NEEDS_RESET
    wanted = written & ~Status.DEVICE_NEEDS_RESET
    if wanted == before:
        return current
    if wanted == before | Status.FAILED:
        return current | Status.FAILED
    if kept or before & Status.FAILED or wanted not in NEXT[before]:
        return None
    return Status(wanted)
