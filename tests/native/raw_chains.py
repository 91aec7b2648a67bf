# SPDX-License-Identifier: Apache-2.0
"""Descriptor chains written field by field, for tests of the device's side of a queue."""

from __future__ import annotations

from devices.testing.driver_queue import (
    INDIRECT,
    DriverQueue,
)
from pyvmm_native.ring import SplitQueue

RAM_BYTES = 1 << 18


def offer(driver: DriverQueue, *descriptors: tuple[int, int, int, int]) -> SplitQueue:
    """Write raw descriptors from index 0 on and make descriptor 0 available."""
    for index, fields in enumerate(descriptors):
        driver.set_desc(index, *fields)
    driver.set_avail_ring(0, 0)
    driver.set_avail_idx(1)
    return driver.device_queue()


def offer_table(driver: DriverQueue, table: bytes, flags: int = INDIRECT) -> SplitQueue:
    """Make an indirect table available, in a descriptor with `flags`."""
    return offer(driver, (driver.place(table), len(table), flags, 0))
