# SPDX-License-Identifier: Apache-2.0
"""Tags and layout of memory statistics against the installed `linux/virtio_balloon.h`.

Headers before Linux 6.12 end after tag 9; the later tags are checked where the header has them.
"""

from devices.balloon.stat_tags import STATISTICS
from devices.balloon.stats import ENTRY
from tests.c_layout import Fact, mismatches

HEADERS = ("linux/virtio_balloon.h",)
NAMES = {
    "SWAP_IN": "stat-swap-in",
    "SWAP_OUT": "stat-swap-out",
    "MAJFLT": "stat-major-faults",
    "MINFLT": "stat-minor-faults",
    "MEMFREE": "stat-free-memory",
    "MEMTOT": "stat-total-memory",
    "AVAIL": "stat-available-memory",
    "CACHES": "stat-disk-caches",
    "HTLB_PGALLOC": "stat-htlb-pgalloc",
    "HTLB_PGFAIL": "stat-htlb-pgfail",
}
LATER = {
    "OOM_KILL": "stat-oom-kills",
    "ALLOC_STALL": "stat-alloc-stalls",
    "ASYNC_SCAN": "stat-async-scans",
    "DIRECT_SCAN": "stat-direct-scans",
    "ASYNC_RECLAIM": "stat-async-reclaims",
    "DIRECT_RECLAIM": "stat-direct-reclaims",
}
TAGS = {statistic.name: tag for tag, statistic in enumerate(STATISTICS)}


def test_every_statistic_is_checked_here() -> None:
    assert [*NAMES.values(), *LATER.values()] == [*TAGS]


def test_events_are_told_from_amounts_of_memory() -> None:
    """Linux counts events in MAJFLT, MINFLT, HTLB_* and the two OOM and stall tags, else bytes."""
    events = {statistic.name for statistic in STATISTICS if not statistic.is_bytes}
    assert events == {
        *("stat-major-faults", "stat-minor-faults", "stat-htlb-pgalloc", "stat-htlb-pgfail"),
        *("stat-oom-kills", "stat-alloc-stalls"),
    }


def test_tags_and_layout() -> None:
    facts = [
        Fact("sizeof(struct virtio_balloon_stat)", ENTRY.size),
        Fact("offsetof(struct virtio_balloon_stat, val)", 2),
        *(Fact(f"VIRTIO_BALLOON_S_{c_name}", TAGS[name]) for c_name, name in NAMES.items()),
    ]
    assert mismatches(HEADERS, facts) == []


def test_tags_added_later() -> None:
    has_them = mismatches(HEADERS, [Fact("VIRTIO_BALLOON_S_NR > 10", 1)]) == []
    if has_them:
        facts = [Fact(f"VIRTIO_BALLOON_S_{c_name}", TAGS[name]) for c_name, name in LATER.items()]
        assert mismatches(HEADERS, facts) == []
    else:
        assert mismatches(HEADERS, [Fact("VIRTIO_BALLOON_S_NR", len(NAMES))]) == []
