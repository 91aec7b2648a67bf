# SPDX-License-Identifier: Apache-2.0
"""Exercise of chapter 3: a driver whose every device refuses its features.

The driver accepts nothing that the device does not offer, and yet no device sets FEATURES_OK. Find
out which features the device has seen, and mend the driver.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, FAILED = 1, 2, 4, 8, 128
"""Bits of the device status (2.1)."""
VERSION_1 = 1 << 32
"""A feature that every driver of today accepts (6.1)."""


class NegotiationFailed(Exception):
    """The device and this driver have not agreed on features."""


class CommonConfiguration(Protocol):
    """The common configuration structure of a device (4.1.4.3), by the names of its fields."""

    def read(self, name: str) -> int:
        """Return the value of the field `name`."""

    def write(self, name: str, value: int) -> None:
        """Write `value` to the field `name`."""


def initialise(
    common: CommonConfiguration, known: int, set_up_queues: Callable[[int], None]
) -> int:
    """Bring a device from reset to DRIVER_OK (3.1.1); return the features negotiated.

    `known` are the features that the driver can handle. `set_up_queues` is called with the features
    negotiated, once they are certain. Raises NegotiationFailed, after it has set FAILED.
    """
    common.write("device_status", 0)
    common.write("device_status", ACKNOWLEDGE)
    common.write("device_status", ACKNOWLEDGE | DRIVER)
    features = read_features(common) & known
    write_features(common, features)
    status = ACKNOWLEDGE | DRIVER | FEATURES_OK
    common.write("device_status", status)
    if not common.read("device_status") & FEATURES_OK:
        common.write("device_status", ACKNOWLEDGE | DRIVER | FAILED)
        raise NegotiationFailed(f"the device refuses the features {features:#x}")
    set_up_queues(features)
    common.write("device_status", status | DRIVER_OK)
    return features


def read_features(common: CommonConfiguration) -> int:
    """Return the 64 bits of features that the device offers, read in two windows of 32."""
    features = 0
    for window in (0, 1):
        common.write("device_feature_select", window)
        features |= common.read("device_feature") << 32 * window
    return features


def write_features(common: CommonConfiguration, features: int) -> None:
    """Tell the device the 64 bits of features that the driver accepts."""
    for window in (0, 1):
        common.write("device_feature_select", window)
        common.write("driver_feature", features >> 32 * window & 0xFFFF_FFFF)
