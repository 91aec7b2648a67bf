# SPDX-License-Identifier: Apache-2.0
"""Drivers and messages of the balloon device (VIRTIO 1.2, 5.5), in every dialect.

    from devices.balloon.dialects import STANDARD
    from devices.testing.balloon import INFLATE, BalloonDriver
    from pyvmm_native.runs import PageRuns

    driver = BalloonDriver(STANDARD).start()
    (used,) = driver.inflate([100, 101, 300])
    assert used.length == 0
    assert driver.board.ram.discarded_pages == PageRuns([(100, 2), (300, 1)])
    assert driver.board.msi.triggered == [1 + INFLATE]

`BalloonDriver` has a `BalloonBoard` of its own and drives the inflate and deflate queues; the other
dialects are `BITMAP`, `HYBRID` and `RANGES`. `stats`, `hinting` and `misc` have guests that drive
the other queues, `requests` encodes the messages of all queues.
"""

from devices.testing.balloon.driver import (
    DEFLATE,
    INFLATE,
    STATS,
    BalloonBoard,
    BalloonDriver,
    page_request,
)
from devices.testing.balloon.hinting import HintGuest
from devices.testing.balloon.misc import MiscDriver, MiscGuest, MiscRequest
from devices.testing.balloon.requests import (
    bitmap_request,
    hybrid_records,
    pfn_array,
    range_records,
    record_request,
    stats_payload,
)
from devices.testing.balloon.stats import StatsGuest

__all__ = [
    "DEFLATE",
    "INFLATE",
    "STATS",
    "BalloonBoard",
    "BalloonDriver",
    "HintGuest",
    "MiscDriver",
    "MiscGuest",
    "MiscRequest",
    "StatsGuest",
    "bitmap_request",
    "hybrid_records",
    "page_request",
    "pfn_array",
    "range_records",
    "record_request",
    "stats_payload",
]
