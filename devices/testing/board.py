# SPDX-License-Identifier: Apache-2.0
"""A virtio device on a PCI bus without a machine: RAM, buses and sinks that only remember.

`Board` wires a device to its transport as the machine does, with everything outside replaced by
lists a test can look at. `Board.serve` stands in for the event loop. RAM is real anonymous memory,
so that a discard has the effect it has in production.

    board = Board.with_balloon(STANDARD)
    driver = VirtioDriver(board).start()
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass, field

from devices.balloon.device import BalloonDevice
from devices.balloon.dialects import Dialect
from devices.bus import Bus
from devices.pci.host_bridge import PciBus
from devices.virtio.device import VirtioDevice
from devices.virtio.pci_transport import VirtioPciTransport
from pyvmm_native import PAGE_BYTES
from pyvmm_native.discard import discard
from pyvmm_native.memory import GuestMemory
from pyvmm_native.runs import PageRuns

MIB = 1 << 20
APERTURE = (0xC000_0000, 0x1000_0000)
SLOT = 3


class Trace:
    """Tracer that keeps every event as (name, fields), except register and bus accesses."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, int | str]]] = []

    def event(self, name: str, **fields: int | str) -> None:
        if not name.startswith(("register_", "bar_")):
            self.events.append((name, fields))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.events]


class Messages:
    """MsiSink: what each vector sends, and every vector triggered; `on_trigger` may be set."""

    def __init__(self) -> None:
        self.routes: dict[int, tuple[int, int]] = {}
        self.triggered: list[int] = []
        self.on_trigger: Callable[[int], object] = lambda vector: None

    def route(self, vector: int, address: int, data: int) -> None:
        self.routes[vector] = (address, data)

    def trigger(self, vector: int) -> None:
        self.triggered.append(vector)
        self.on_trigger(vector)


class Line:
    """InterruptLine that keeps its level."""

    level = False

    def set_level(self, level: bool) -> None:
        self.level = level


@dataclass
class RecordingNotifiers:
    """HostNotifiers: where queues are notified, and which were rung."""

    assigned: dict[int, int] = field(default_factory=dict)
    notified: list[int] = field(default_factory=list)

    def assign(self, queue: int, gpa: int | None) -> None:
        if gpa is None:
            del self.assigned[queue]
        else:
            self.assigned[queue] = gpa

    def notify(self, queue: int) -> None:
        self.notified.append(queue)


class AnonymousRam:
    """GuestRam over private anonymous memory: regions of (gpa, size_bytes)."""

    def __init__(self, *regions: tuple[int, int], host_page_pages: int = 1) -> None:
        self.maps = [
            (gpa, mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
            for gpa, size_bytes in regions
        ]
        self.memory = GuestMemory(self.maps)
        self.pages = PageRuns(
            (gpa // PAGE_BYTES, len(area) // PAGE_BYTES) for gpa, area in self.maps
        )
        self.host_page_pages = host_page_pages
        self.discarded: list[PageRuns] = []

    def discard(self, runs: PageRuns) -> int:
        self.discarded.append(runs)
        return discard(self.memory, runs).bytes


class Board:
    """`device` at 00:03.0 of a PCI bus whose BARs appear on `mmio`."""

    def __init__(self, device: VirtioDevice, ram: AnonymousRam, trace: Trace) -> None:
        self.device = device
        self.ram = ram
        self.trace = trace
        self.msi = Messages()
        self.notifiers = RecordingNotifiers()
        self.line = Line()
        self.actuals: list[int] = []
        self.transport = VirtioPciTransport(device, self.msi, self.notifiers, trace)
        self.function = self.transport.function
        self.mmio = Bus("mmio", tracer=trace)
        self.pci = PciBus(self.mmio, [APERTURE])
        self.pci.add(SLOT, self.function, self.line)

    @classmethod
    def with_balloon(
        cls, dialect: Dialect, *, ram: AnonymousRam | None = None, offered: int | None = None
    ) -> Board:
        """A board with a balloon; 64 MiB of RAM unless given. `actuals` collects on_actual."""
        ram = ram or AnonymousRam((0, 64 * MIB))
        actuals: list[int] = []
        trace = Trace()
        device = BalloonDevice(dialect, ram, trace, actuals.append, offered=offered)
        board = cls(device, ram, trace)
        board.actuals = actuals
        return board

    @property
    def balloon(self) -> BalloonDevice:
        assert isinstance(self.device, BalloonDevice)
        return self.device

    def serve(self) -> int:
        """Do all queue work that doorbells ask for, as the event loop does; returns the calls."""
        calls = 0
        while self.notifiers.notified:
            queue = self.notifiers.notified.pop(0)
            calls += 1
            if self.transport.serve_queue(queue):
                self.notifiers.notify(queue)
        return calls
