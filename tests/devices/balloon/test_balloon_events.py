# SPDX-License-Identifier: Apache-2.0
"""The events of a balloon that is watched: targets, sizes, and requests as they were decoded."""

from __future__ import annotations

import pytest

from devices.balloon.dialects import STANDARD
from devices.testing import RecordingTracer
from devices.testing.balloon import BalloonDriver
from devices.testing.balloon.driver import INFLATE
from devices.testing.balloon.requests import pfn_array
from pyvmm.trace.stream import TraceEvent, events_of
from pyvmm_native.events import EventBuffer


@pytest.fixture
def buffer(monkeypatch: pytest.MonkeyPatch) -> EventBuffer:
    """Return the buffer of the next balloon's events, which is watched."""
    buffer = EventBuffer()
    buffer.start()
    monkeypatch.setattr(
        "devices.testing.balloon.driver.RecordingTracer", lambda: RecordingTracer(buffer)
    )
    return buffer


def taken(buffer: EventBuffer, *kinds: str) -> list[TraceEvent]:
    batch = buffer.take()
    return [event for event in events_of(batch) if event.kind in kinds] if batch else []


def test_a_target_its_request_and_the_new_size_are_events(buffer: EventBuffer) -> None:
    driver = BalloonDriver(STANDARD).start()
    taken(buffer)
    driver.board.balloon.set_target(3)
    driver.inflate([20, 21, 30])
    driver.write_actual(3)
    events = taken(buffer, "target", "interrupt", "inflate", "actual", "chain")
    assert [(event.kind, event.queue) for event in events] == [
        ("target", ""),
        ("interrupt", ""),
        ("chain", "inflate"),
        ("inflate", ""),
        ("interrupt", ""),
        ("actual", ""),
    ]
    target, config, chain, inflate, _, actual = (event.fields for event in events)
    assert target["pages"] == actual["pages"] == 3
    assert config["cause"] == "config"
    assert chain["readable_bytes"] == 12
    assert inflate == {"pages": 3, "runs": 2, "discarded_bytes": 3 * 4096}


def test_requests_that_wait_together_are_served_one_by_one_while_watched(
    buffer: EventBuffer,
) -> None:
    driver = BalloonDriver(STANDARD).start()
    taken(buffer)
    for pfn in (20, 21):
        driver.queues[INFLATE].add([pfn_array([pfn])])
    driver.notify(INFLATE)
    driver.board.serve()
    events = taken(buffer, "chain", "inflate", "used")
    assert [event.kind for event in events] == ["chain", "inflate", "used"] * 2
