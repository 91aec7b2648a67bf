# SPDX-License-Identifier: Apache-2.0
"""A guest without KVM for the scope's page: a device on a board, and the driver of the test kit.

`BoardGuest` answers what the server of a live guest answers, from guest memory and from the events
of the device, so that a test can compare the page with what the driver wrote.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from devices.errors import BadPayload
from devices.testing import (
    ALL_FEATURES,
    AnonymousRam,
    Board,
    DriverQueue,
    RecordingTracer,
    VirtioDriver,
)
from devices.virtio.device import VirtioDevice
from devices.virtio.inspection import inspect_queue
from devices.virtio.queue import QueueSpec
from pyvmm.machine.pci_registers import pci_registers
from pyvmm.trace.kinds import KINDS
from pyvmm.trace.recording_format import encode_chunk
from pyvmm_native import PAGE_BYTES
from pyvmm_native.events import EventBuffer
from pyvmm_native.ring import Chain

RAM_BYTES = 64 << 20
CELL_BYTES = 2 << 20
Json = dict[str, Any]


class Keeper(VirtioDevice):
    """Keeps every buffer until `finish`; a buffer that holds "bad" is refused."""

    def __init__(self, size: int, tracer: RecordingTracer) -> None:
        super().__init__(
            device_id=63,
            name="keeper",
            queues=[QueueSpec("kept", size)],
            memory=AnonymousRam((0, RAM_BYTES)).memory,
            tracer=tracer,
        )
        self.kept: list[Chain] = []

    def serve(self, queue: int, chain: Chain) -> None:
        if chain.readable == b"bad":
            raise BadPayload("the request is bad")
        self.kept.append(chain)

    def finish(self, place: int = 0) -> None:
        """Return the buffer at `place` among those kept."""
        chain = self.kept.pop(place)
        self.complete(0, chain, chain.write(b"reply"))


class BoardGuest:
    """A keeper with a queue of `size` entries, and its driver.

    Ring indices start at `start_index`.
    """

    def __init__(self, size: int = 16, features: int = ALL_FEATURES, start_index: int = 0) -> None:
        self.buffer = EventBuffer()
        self.buffer.start()
        tracer = RecordingTracer(self.buffer)
        self.keeper = Keeper(size, tracer)
        self.driver = VirtioDriver(Board(self.keeper, tracer)).start(features=features)
        self.queue = self.driver.queues[0]
        if start_index:
            self._start_at(start_index)
        self.live = True
        self.cells = [[gpa, 0, 0, 0, 512, 0] for gpa in range(0, RAM_BYTES, CELL_BYTES)]
        """Pages of RAM: address of the cell, resident, balloon, unused, untouched, huge."""
        self.messages: list[Json] = []
        """Messages of the page."""
        self.sent_to_page: Callable[[bytes | Json], None] = lambda message: None
        """Sends a chunk or a message to the page."""

    def _start_at(self, index: int) -> None:
        before = self.queue
        self.queue = self.driver.queues[0] = DriverQueue(
            self.keeper.memory,
            before.size,
            base_gpa=before.desc_gpa,
            event_idx=before.event_idx,
            indirect=before.indirect,
            start_index=index,
        )
        ring = self.keeper.queues[0].ring
        assert ring is not None
        ring.next_avail = ring.next_used = index

    def send(self, *readable: bytes, writable: int = 16, indirect: bool = False) -> int:
        """Let the device take a buffer, and keep it; return its head."""
        head = self.queue.add(readable, [writable], indirect=indirect)
        self.driver.notify(0)
        self.driver.board.serve()
        return head

    def pass_through(self, count: int) -> None:
        """Send `count` buffers, of which the device returns each at once."""
        for _ in range(count):
            self.send(b"request")
            self.keeper.finish()
            self.queue.take_used()

    def take_chunk(self) -> bytes:
        """Return the events since the last call as a chunk."""
        batch = self.buffer.take()
        assert batch is not None
        return encode_chunk(batch)

    def answer(self, path: str, query: dict[str, str]) -> Json:
        """Return the answer to `api/PATH`; KeyError if there is none."""
        answers: dict[str, Callable[[dict[str, str]], Json]] = {
            "source": self._source,
            "queue": self._queue,
            "buffer": self._buffer,
            "registers": lambda query: pci_registers(self.driver.board.transport),
            "pages": lambda query: {
                "cell_bytes": CELL_BYTES,
                "cells": self.cells,
                "rss": sum(cell[1] for cell in self.cells) * PAGE_BYTES,
            },
        }
        return answers[path](query)

    def _source(self, query: dict[str, str]) -> Json:
        return {
            "live": self.live,
            "name": "board <b>guest</b>",
            "memory": RAM_BYTES,
            "ram": [[0, RAM_BYTES]],
            "devices": [{"name": "keeper", "queues": ["kept"]}],
            "kinds": [
                {"name": kind.name, "meaning": kind.meaning, "fields": kind.fields}
                for kind in KINDS
            ],
            "start-ns": 0,
            "notes": [],
        }

    def _queue(self, query: dict[str, str]) -> Json:
        seen = inspect_queue(self.keeper.queues[0])
        return {
            "size": seen.size,
            "descriptors": [list(each) for each in seen.descriptors],
            "avail": {
                "flags": seen.avail_flags,
                "idx": seen.avail_idx,
                "ring": list(seen.avail_ring),
                "used_event": seen.used_event,
            },
            "used": {
                "flags": seen.used_flags,
                "idx": seen.used_idx,
                "ring": [list(each) for each in seen.used_ring],
                "avail_event": seen.avail_event,
            },
            "next_avail": seen.next_avail,
            "heads_in_flight": [chain.head for chain in self.keeper.kept],
        }

    def _buffer(self, query: dict[str, str]) -> Json:
        chain = inspect_queue(self.keeper.queues[0]).chain(int(query["head"]))
        parts = {"readable": b"", "writable": b""}
        for each in chain:
            if not each.flags & 4:
                part = "writable" if each.flags & 2 else "readable"
                parts[part] += self.keeper.memory.read(each.gpa, min(each.length, 4096))
        described = [
            {
                "offset": 0,
                "length": 4,
                "name": "first word",
                "value": "<b>" + parts["readable"][:4].hex() + "\x1b[1m",
                "clause": "VIRTIO 1.2, 2.7.4",
                "part": "readable",
            }
        ]
        return {
            "descriptors": [
                {"table_gpa": 0, "index": 0, "gpa": each.gpa, "length": each.length}
                for each in chain
            ],
            **{name: base64.b64encode(data).decode() for name, data in parts.items()},
            "described": described if parts["readable"] else [],
        }
