# SPDX-License-Identifier: Apache-2.0
"""The device status field as a state machine (VIRTIO 1.2, sections 2.1 and 3.1).

The driver moves through the states of `NEXT` by setting more bits; it MUST NOT clear one (2.1.1)
except by writing 0, which resets the device. `step` returns the field's value after a write by the
driver. DEVICE_NEEDS_RESET is the device's own bit: the driver can neither set nor clear it, and
while it or FAILED is set only a reset changes the status.
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
"""The states of an initialisation that succeeds, in their order (3.1.1)."""

NEXT: dict[Status, frozenset[Status]] = {
    Status.RESET: frozenset({FOUND, DRIVEN}),
    FOUND: frozenset({DRIVEN}),
    DRIVEN: frozenset({NEGOTIATED}),
    NEGOTIATED: frozenset({LIVE}),
    LIVE: frozenset(),
}
"""The states that a driver may enter from each state, besides FAILED (order: VIRTIO 1.2, 3.1.1).

Setting ACKNOWLEDGE and DRIVER with one write skips nothing that the device could observe, and
drivers do it.
"""


def is_running(status: Status) -> bool:
    """Return whether queues may be used: DRIVER_OK without FAILED or DEVICE_NEEDS_RESET."""
    stopped = Status.DEVICE_NEEDS_RESET | Status.FAILED
    return bool(status & Status.DRIVER_OK) and not status & stopped


def is_possible(value: int) -> bool:
    """Return whether the field can have `value`: a state of `NEXT`, perhaps with an error bit.

    Rings are accessed after DRIVER_OK only, so DEVICE_NEEDS_RESET is not set before.
    """
    state = Status(value) & ~(Status.DEVICE_NEEDS_RESET | Status.FAILED)
    return state in NEXT and (state == LIVE or not value & Status.DEVICE_NEEDS_RESET)


def step(current: Status, written: int) -> Status | None:
    """Return the status after the driver has written `written`; None for a refused transition.

    A refused transition leaves the field unchanged, which the driver sees when it reads it back.
    """
    if written == 0:
        return Status.RESET
    kept = current & Status.DEVICE_NEEDS_RESET
    before = current & ~Status.DEVICE_NEEDS_RESET
    requested = written & ~Status.DEVICE_NEEDS_RESET
    if requested == before:
        return current
    if requested == before | Status.FAILED:
        return current | Status.FAILED
    if kept or before & Status.FAILED or requested not in NEXT[before]:
        return None
    return Status(requested)
