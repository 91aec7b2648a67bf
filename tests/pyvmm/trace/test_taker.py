# SPDX-License-Identifier: Apache-2.0
"""One thread takes the events of a machine for all of its sinks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyvmm.errors import ThreadNotStarted
from pyvmm.trace import taker
from pyvmm.trace.recorder import Recorder
from pyvmm.trace.recording import Recording
from pyvmm.trace.recording_file import RecordingFile
from pyvmm.trace.recording_format import decode_chunk, decode_chunk_header, encode_chunk
from pyvmm.trace.stream import events_of
from pyvmm.trace.taker import EventTaker
from pyvmm.trace.tracer import EventTracer
from pyvmm_native.events import Batch


class CollectingSink:
    """Keeps the values of all events it is given."""

    def __init__(self, period_s: float = 0.01) -> None:
        self.period_s = period_s
        self.values: list[object] = []
        self.ended = threading.Event()

    def put(self, chunk: bytes, batch: Batch) -> None:
        header = decode_chunk_header(chunk)
        assert header is not None
        assert header.event_count == batch.event_count
        self.values += [event.fields["value"] for event in events_of(decode_chunk(header, chunk))]

    def end(self) -> None:
        self.ended.set()


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def taker_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "event-taker"]


def test_a_recording_and_a_client_get_the_events_from_one_thread(tmp_path: Path) -> None:
    tracer = EventTracer()
    assert taker_threads() == []
    recorder = Recorder(tracer, RecordingFile(tmp_path / "r"))
    recorder.commit()
    recorder.start()
    tracer.event("echo.tick", value=0)
    sink = CollectingSink()
    tracer.taker.add(sink)
    tracer.taker.hurry()
    wait_until(lambda: recorder.total.events == 1)
    tracer.event("echo.tick", value=1)
    wait_until(lambda: 1 in sink.values)
    assert len(taker_threads()) == 1
    tracer.taker.remove(sink)
    assert sink.ended.wait(5)
    tracer.event("echo.tick", value=2)
    recorder.close()
    wait_until(lambda: taker_threads() == [])
    assert not tracer.watched
    assert sink.values[-1] == 1
    with Recording(tmp_path / "r") as recording:
        assert [event.fields["value"] for event in recording.events()] == [0, 1, 2]


def test_a_sink_that_leaves_gets_the_events_so_far() -> None:
    tracer = EventTracer()
    sink = CollectingSink(period_s=60)
    tracer.taker.add(sink)
    for value in range(100):
        tracer.event("echo.tick", value=value)
    tracer.taker.remove(sink)
    tracer.taker.remove(sink)
    assert sink.ended.wait(5)
    assert sink.values == [*range(100)]


def test_sinks_that_come_and_go_never_find_the_buffer_in_use() -> None:
    """Also while the thread of the last sink ends."""
    tracer = EventTracer()
    for value in range(200):
        sink = CollectingSink()
        tracer.taker.add(sink)
        tracer.event("echo.tick", value=value)
        tracer.taker.remove(sink)
    assert sink.ended.wait(5)
    assert sink.values[-1] == 199
    wait_until(lambda: not tracer.watched)


def test_the_taker_goes_on_after_it_had_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []

    def encode(batch: Batch) -> bytes:
        encoded.append(batch.first_seq)
        if len(encoded) == 1:
            raise MemoryError
        return encode_chunk(batch)

    monkeypatch.setattr(taker, "encode_chunk", encode)
    tracer = EventTracer()
    sink = CollectingSink()
    tracer.taker.add(sink)
    tracer.event("echo.tick", value=0)
    wait_until(lambda: encoded == [0])
    tracer.event("echo.tick", value=1)
    wait_until(lambda: sink.values == [1])
    assert encoded == [0, 1], "the lost event has its number"
    tracer.taker.remove(sink)
    assert sink.ended.wait(5)


class FailingTake:
    """The tracer of `tracer`, whose buffer has no memory for its reader at first."""

    def __init__(self, tracer: EventTracer) -> None:
        self.quiet, self.exits = tracer.quiet, tracer.exits
        self.start, self.stop = tracer.start, tracer.stop
        self._buffer = tracer.native
        self.failed = 0

    @property
    def native(self) -> Any:
        return self

    def take(self) -> Batch | None:
        if self.failed < 2:
            self.failed += 1
            raise MemoryError
        return self._buffer.take()


def test_events_that_the_taker_cannot_take_are_taken_later() -> None:
    tracer = EventTracer()
    failing = FailingTake(tracer)
    events = EventTaker(failing)
    sink = CollectingSink()
    events.add(sink)
    tracer.event("echo.tick", value=7)
    wait_until(lambda: sink.values == [7])
    assert failing.failed == 2
    events.remove(sink)
    assert sink.ended.wait(5)


def test_the_shortest_period_of_all_sinks_counts() -> None:
    tracer = EventTracer()
    patient, eager = CollectingSink(period_s=60), CollectingSink(period_s=0.01)
    tracer.taker.add(patient)
    time.sleep(0.05)  # the thread waits for a minute
    tracer.taker.add(eager)
    tracer.event("echo.tick", value=0)
    wait_until(lambda: eager.values == [0])
    assert patient.values == [0]
    for sink in (patient, eager):
        tracer.taker.remove(sink)


def test_a_thread_that_cannot_be_started_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tracer, sink = EventTracer(), CollectingSink()

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(ThreadNotStarted):
            tracer.taker.add(sink)
    assert not tracer.watched
    tracer.taker.add(sink)
    tracer.event("echo.tick", value=1)
    tracer.taker.remove(sink)
    assert sink.ended.wait(5)
    assert sink.values == [1]
