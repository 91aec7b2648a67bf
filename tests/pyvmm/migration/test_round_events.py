# SPDX-License-Identifier: Apache-2.0
"""Each round of a migration is an event."""

from __future__ import annotations

from devices.testing import RecordingTracer
from pyvmm.migration.progress import MigrationProgress


def test_each_round_is_an_event() -> None:
    tracer = RecordingTracer()
    progress = MigrationProgress(tracer=tracer)
    progress.round_done(1 << 20, 0.25)
    progress.collected(pages=500, seconds=0.5)
    progress.round_done(4096, 0.001)
    rounds = [fields for name, fields in tracer.events if name == "migration.round"]
    assert rounds == [
        {"round": 1, "sent_bytes": 1 << 20, "duration_us": 250_000, "dirty_pages_rate": 0},
        {"round": 2, "sent_bytes": 4096, "duration_us": 1000, "dirty_pages_rate": 1000},
    ]
