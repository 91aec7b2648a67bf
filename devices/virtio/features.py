# SPDX-License-Identifier: Apache-2.0
"""Feature bits that belong to every virtio device (VIRTIO 1.2, section 6), and the rules on them.

A feature set is an `int` used as a 64-bit mask. Bits 0 to 23 mean something else for each device
type and live with the device; bits 24 to 63 are here. `refusal` is the whole judgement that a
device makes when the driver sets FEATURES_OK (VIRTIO 1.2, 2.2.2 and 3.1.1).
"""

from __future__ import annotations

from collections.abc import Mapping

INDIRECT_DESC = 1 << 28
"""A descriptor may point at a table of descriptors (VIRTIO 1.2, 2.7.5.3)."""

EVENT_IDX = 1 << 29
"""Both sides say at which ring index they want to be notified (VIRTIO 1.2, 2.7.7 and 2.7.10)."""

VERSION_1 = 1 << 32
"""The driver keeps to version 1 of the specification, not to the legacy interface."""

RING_RESET = 1 << 40
"""The driver may reset one queue without the others (VIRTIO 1.2, 2.6.1)."""

TRANSPORT = INDIRECT_DESC | EVENT_IDX | VERSION_1 | RING_RESET
"""What every device here offers besides its own bits."""


def names(mask: int, device_names: Mapping[int, str]) -> str:
    """Feature set as words for logs, such as ``STATS_VQ|VERSION_1``; unnamed bits as ``bit N``."""
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
    """Why the device must not take the driver's choice of features; None if it is fine.

    VIRTIO 1.2, 2.2.1: the driver MUST NOT accept a feature which the device did not offer.
    VIRTIO 1.2, 6.1 and 6.2: the driver MUST accept VERSION_1, which the device may insist on; this
    device has no legacy interface, so it does.
    """
    if accepted & ~offered:
        return "a feature was accepted that was not offered"
    if not accepted & VERSION_1:
        return "VERSION_1 was not accepted"
    return None
