# SPDX-License-Identifier: Apache-2.0
"""An entropy device on a board, with its clock, and a driver that offers buffers to it."""

from __future__ import annotations

import os
from collections.abc import Callable

from devices.rng.device import RngDevice
from devices.testing.board import Board
from devices.testing.driver import VirtioDriver
from devices.testing.ram import AnonymousRam
from devices.testing.recorders import RecordingTracer
from devices.testing.timers import FakeTimers

REQUEST = 0
SECOND_NS = 1_000_000_000
RAM_BYTES = 64 << 20


class RngBoard(Board):
    """A board with an entropy device, its memory and its clock."""

    def __init__(
        self,
        bytes_per_s: int = 0,
        ram: AnonymousRam | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.ram = ram or AnonymousRam((0, RAM_BYTES))
        self.timers = FakeTimers()
        tracer = RecordingTracer()
        self.rng = RngDevice(
            self.ram.memory, self.timers, tracer, bytes_per_s=bytes_per_s, entropy=entropy
        )
        super().__init__(self.rng, tracer)


class RngDriver(VirtioDriver):
    """Offers buffers of given lengths, and collects the bytes returned."""

    def __init__(self, board: RngBoard) -> None:
        super().__init__(board)
        self.start()
        self.enable_msix()

    def offer(self, *lengths: int) -> None:
        """Make one buffer of each length available, notify once, and have the queue served."""
        for length in lengths:
            self.queues[REQUEST].add([], [length])
        self.notify(REQUEST)
        self.board.serve()

    def taken(self) -> list[bytes]:
        return [used.data for used in self.queues[REQUEST].take_used()]
