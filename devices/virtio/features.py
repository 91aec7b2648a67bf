# SPDX-License-Identifier: Apache-2.0
"""Feature bits that belong to every virtio device (VIRTIO 1.2, section 6), and the rules on them.

A feature set is an `int` used as a 64-bit mask. Bits 0 to 23 and 50 to 63 depend on the device type
and are defined there; the others are reserved for all devices (2.2) and are here. `refusal` checks
the driver's choice when it sets FEATURES_OK (VIRTIO 1.2, 2.2.2 and 3.1.1).
"""

from __future__ import annotations

from collections.abc import Mapping

INDIRECT_DESC = 1 << 28
"""A descriptor may point at a table of descriptors (VIRTIO 1.2, 2.7.5.3)."""

EVENT_IDX = 1 << 29
"""Each side publishes the index at which it needs a notification (VIRTIO 1.2, 2.7.7, 2.7.10)."""

VERSION_1 = 1 << 32
"""The driver follows version 1 of the specification, not the legacy interface."""

RING_RESET = 1 << 40
"""The driver may reset one queue without the others (VIRTIO 1.2, 2.6.1)."""

TRANSPORT = INDIRECT_DESC | EVENT_IDX | VERSION_1 | RING_RESET
"""The features that every device here offers besides its own bits."""


def names(mask: int, device_names: Mapping[int, str]) -> str:
    """Return a feature set as text, such as `STATS_VQ|VERSION_1`; unnamed bits as `bit N`."""
    known = {
        **device_names,
        INDIRECT_DESC: "INDIRECT_DESC",
        EVENT_IDX: "EVENT_IDX",
        VERSION_1: "VERSION_1",
        RING_RESET: "RING_RESET",
    }
    bits = [1 << bit for bit in range(64) if mask >> bit & 1]
    return "|".join(known.get(bit, f"bit {bit.bit_length() - 1}") for bit in bits) or "none"


def refusal(offered: int, accepted: int) -> str | None:
    """Return why the device must refuse the driver's choice of features, or None.

    VIRTIO 1.2, 2.2.1: the driver MUST NOT accept a feature which the device did not offer.
    VIRTIO 1.2, 6.1 and 6.2: the driver MUST accept VERSION_1. A device may refuse a driver that
    does not; this one does, since it has no legacy interface.
    """
    if accepted & ~offered:
        return "a feature was accepted that was not offered"
    if not accepted & VERSION_1:
        return "VERSION_1 was not accepted"
    return None
