# SPDX-License-Identifier: Apache-2.0
"""A guest without a machine: a console on a board, served on the event loop under a lock."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from devices.console.control import Event
from devices.console.queues import receive_queue, transmit_queue
from pyvmm.console.ports import LockedPort
from tests.devices.console.console_board import PAGE, ConsoleBoard, ConsoleDriver


class BoardGuest:
    """The guest of port 1, "data", whose driver has opened it."""

    def __init__(self) -> None:
        self.board = ConsoleBoard(["data"])
        self.driver = ConsoleDriver(self.board).get_ready()
        self.lock = threading.Lock()
        self.model = self.board.console.ports["data"]
        self.port = LockedPort(self.model, self.lock)

    async def serve(self) -> None:
        """Serve the notified queues, as the machine does on its loop."""
        while True:
            with self.lock:
                self.board.serve()
            await asyncio.sleep(0.001)

    async def write(self, data: bytes) -> None:
        """Transmit `data` in buffers of a page, waiting for free descriptors."""
        queue = self.driver.queues[transmit_queue(1)]
        for start in range(0, len(data), PAGE):
            while len(queue._in_flight) > 100:
                queue.take_used()
                await asyncio.sleep(0.001)
            with self.lock:
                queue.add([data[start : start + PAGE]])
                self.driver.notify(transmit_queue(1))
        while queue._in_flight:
            queue.take_used()
            await asyncio.sleep(0.001)

    async def read(self, count: int) -> bytes:
        """Return the next `count` bytes of input, or more."""
        received = b""
        while len(received) < count:
            with self.lock:
                received += self.driver.read(1)
                while len(self.driver.queues[receive_queue(1)]._in_flight) < 16:
                    self.driver.queues[receive_queue(1)].add([], [PAGE])
                self.driver.notify(receive_queue(1))
            await asyncio.sleep(0.001)
        return received

    def opens(self) -> list[int]:
        """Return what the driver was told about the port's host since the last call."""
        with self.lock:
            messages = self.driver.take_messages()
        return [value for _, event, value, _ in messages if event == Event.PORT_OPEN]


@asynccontextmanager
async def board_guest() -> AsyncIterator[BoardGuest]:
    """Serve a guest while the block runs."""
    guest = BoardGuest()
    serving = asyncio.create_task(guest.serve())
    try:
        yield guest
    finally:
        serving.cancel()
