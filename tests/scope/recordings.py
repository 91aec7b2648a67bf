# SPDX-License-Identifier: Apache-2.0
"""Recordings for tests of the page: a balloon on a board, and events without a device."""

from __future__ import annotations

import random
from collections.abc import Iterable

from devices.balloon.device import BalloonDevice
from devices.balloon.dialects import STANDARD
from devices.testing.balloon.requests import pfn_array
from devices.testing.board import Board
from devices.testing.driver import VirtioDriver
from devices.testing.ram import AnonymousRam
from devices.testing.recorders import RecordingTracer
from pyvmm.trace.recording_format import encode_chunk
from pyvmm_native.events import Batch, EventBuffer

HOSTILE = "</script><img src=x onerror=alert(1)>\x1b[31m\u202e\0"


def board_batches(rounds: int = 3) -> list[Batch]:
    """Return the events of a balloon that is initialised and inflated `rounds` times."""
    buffer = EventBuffer()
    buffer.start()
    tracer = RecordingTracer(buffer)
    ram = AnonymousRam()
    driver = VirtioDriver(Board(BalloonDevice(STANDARD, ram, tracer), tracer)).start()
    batches = [taken(buffer)]
    for number in range(rounds):
        driver.send(0, [pfn_array(range(number * 64, number * 64 + 32))])
        driver.send(1, [pfn_array(range(number * 64, number * 64 + 8))])
    return [*batches, taken(buffer)]


def report_batches(*pages: tuple[int, int]) -> list[Batch]:
    """Return the events of a balloon whose driver reports `pages`, (address, bytes) each."""
    buffer = EventBuffer()
    buffer.start()
    tracer = RecordingTracer(buffer)
    ram = AnonymousRam()
    device = BalloonDevice(STANDARD, ram, tracer, offered=STANDARD.features.known)
    driver = VirtioDriver(Board(device, tracer)).start()
    driver.queues[4].add([], writable_segments=pages)
    driver.notify(4)
    driver.board.serve()
    return [taken(buffer)]


def hostile_batches() -> list[Batch]:
    """Return events whose every name and text is markup and control characters."""
    buffer = EventBuffer()
    buffer.start()
    for name in (HOSTILE, "__proto__.constructor", f"{HOSTILE}.status", ".dot"):
        buffer.event(name, device=HOSTILE, queue=HOSTILE * 9, __proto__=HOSTILE, value=2**64 - 1)
        buffer.event(name, device="", table=f"{HOSTILE}.x", queue=7, names=HOSTILE)
    buffer.event("descriptor", device=HOSTILE, queue=HOSTILE, head=2**64 - 1, gpa=2**63, flags=4)
    most = dict.fromkeys(("head", "index", "gpa", "length", "flags"), 2**64 - 1)
    buffer.event("descriptor", device=HOSTILE, queue=HOSTILE, table_gpa=0, next=0, **most)
    return [taken(buffer)]


def random_batches(seed: int, events: int) -> list[Batch]:
    """Return `events` events of random kinds, places and values, in batches of random sizes."""
    rng = random.Random(seed)
    buffer = EventBuffer()
    buffer.start(4 << 20)
    values = [0, 1, 127, 128, 2**32, 2**49 - 1, 2**49, 2**53 - 1, 2**53, 2**63, 2**64 - 1]
    texts = ["", "a", "balloon", "é€😀", "x" * 70, "\ufefftext", *(f"text {i}" for i in range(9))]
    batches = []
    for _ in range(events):
        fields: dict[str, int | str] = {}
        for name in rng.sample(
            ["device", "table", "queue", "gpa", "length", "why"], rng.randrange(6)
        ):
            fields[name] = rng.choice(values) if rng.random() < 0.5 else rng.choice(texts)
        name = rng.choice(["tick", "balloon.status", "a.b.c", "migration.round", ".x", "x."])
        buffer.event(name, **fields)
        if rng.random() < 0.02:
            batches.append(taken(buffer))
    batch = buffer.stop()
    return [*batches, batch] if batch else batches


def dropping_batch() -> Batch:
    """Return a batch after which events were lost."""
    buffer = EventBuffer()
    buffer.start(256)
    for value in range(300):
        buffer.event("tick", value=value)
    return taken(buffer)


def taken(buffer: EventBuffer) -> Batch:
    """Return the events that wait in `buffer`."""
    batch = buffer.take()
    assert batch is not None
    return batch


def chunks(batches: Iterable[Batch]) -> bytes:
    """Return the batches as chunks of a recording."""
    return b"".join(map(encode_chunk, batches))
