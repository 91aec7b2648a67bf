# SPDX-License-Identifier: Apache-2.0
"""Memory statistics by tag (VIRTIO 1.2, section 5.5.6.4, and Linux's virtio_balloon.h).

The specification defines tags 0 to 9, Linux reports 10 to 15 since 6.12. This is the only list of
them; the names are those of QEMU's `guest-stats` property, the units those of Linux's driver.
"""

from __future__ import annotations

from typing import NamedTuple


class Statistic(NamedTuple):
    """Meaning of the value of one tag."""

    name: str
    """Name in QEMU's `guest-stats`."""
    is_bytes: bool
    """The value is an amount of memory in bytes; else it counts events."""
    meaning: str
    """Short description of the value, for tables."""


STATISTICS = (
    Statistic("stat-swap-in", True, "swapped in since boot"),
    Statistic("stat-swap-out", True, "swapped out since boot"),
    Statistic("stat-major-faults", False, "page faults that needed disk I/O"),
    Statistic("stat-minor-faults", False, "page faults, all of them on Linux"),
    Statistic("stat-free-memory", True, "not used for anything"),
    Statistic("stat-total-memory", True, "managed by the guest's kernel"),
    Statistic("stat-available-memory", True, "usable without swapping"),
    Statistic("stat-disk-caches", True, "disk cache, most of it reclaimable"),
    Statistic("stat-htlb-pgalloc", False, "huge pages allocated"),
    Statistic("stat-htlb-pgfail", False, "huge page allocations that failed"),
    Statistic("stat-oom-kills", False, "processes killed by the OOM killer"),
    Statistic("stat-alloc-stalls", False, "allocations that had to reclaim first"),
    Statistic("stat-async-scans", True, "scanned by background reclaim"),
    Statistic("stat-direct-scans", True, "scanned by stalled allocations"),
    Statistic("stat-async-reclaims", True, "freed by background reclaim"),
    Statistic("stat-direct-reclaims", True, "freed by stalled allocations"),
)
"""By tag."""

BY_NAME = {statistic.name: statistic for statistic in STATISTICS}
"""Statistics by their QEMU name."""
