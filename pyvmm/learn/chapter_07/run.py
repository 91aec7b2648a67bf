# SPDX-License-Identifier: Apache-2.0
"""Runnable part of chapter 7: the same buffer as a chain of the queue, and through a table."""

from __future__ import annotations

from devices.testing import AnonymousRam, Board, RecordingTracer, VirtioDriver
from pyvmm.learn.chapter_07.check import RequestRecorder
from pyvmm.learn.stage import Stage, record_events

READABLE, WRITABLE = [b"header", b"data"], [4]
"""The pieces of the buffer."""


def run(stage: Stage) -> None:
    """Send a buffer of three pieces in both ways; print what the device walks."""
    ram = AnonymousRam()
    with record_events(stage.recording) as events:
        tracer = RecordingTracer(events)
        driver = VirtioDriver(Board(RequestRecorder(ram.memory, tracer), tracer)).start()
        for indirect in (False, True):
            free = driver.queues[0].free_descriptors
            driver.queues[0].add(READABLE, WRITABLE, indirect=indirect)
            taken = free - driver.queues[0].free_descriptors
            stage.say(f"indirect={indirect}: the driver takes {taken} of {free} descriptors")
            driver.notify(0)
            driver.board.serve()
            driver.queues[0].take_used()
    stage.say()
    stage.show_events(("descriptor", "chain", "used"), device="recorder")
