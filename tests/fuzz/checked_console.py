# SPDX-License-Identifier: Apache-2.0
"""A checked board with a console of three ports. Further invariants to those of `checked_board`:

* of each port at most one buffer is in flight, and only while its transmit queue is stalled;
* a host is given at most as much at once as one buffer may hold;
* messages to the driver do not accumulate;
* an idle driver gets every message that it has supplied a buffer for, and every buffer that it has
  transmitted back.
"""

from __future__ import annotations

from collections.abc import Callable

from devices.console.control import PendingMessages
from devices.console.device import ConsoleDevice
from devices.console.port import MAX_WRITE_BYTES, ConsolePort
from devices.console.queues import CONTROL_RECEIVE, transmit_queue
from devices.testing.recorders import RecordingTracer
from devices.virtio.device import STREAM_BUFFERS_PER_CALL
from devices.virtio.queue import DeviceQueue
from pyvmm_native.chain_reader import ChainReader
from pyvmm_native.ring import Chain
from tests.fuzz import page_oracle
from tests.fuzz.checked_board import CheckedBoard, CheckedDevice, CheckedRam, check

MAX_PORTS = 3
NAMES = ("first", "second", "third")


class CheckedHost:
    """A host with room for `room` bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, output: ChainReader) -> int:
        check(0 < len(output) <= MAX_WRITE_BYTES, f"{len(output)} bytes of output at once")
        accepted = len(output.read(self.room))
        self.room -= accepted
        return accepted

    def room_available(self) -> None:
        """Ignore it: the program decides when the host offers input."""

    def guest_open_changed(self, is_open: bool) -> None:
        """Ignore it."""

    def unplugged(self) -> None:
        """Ignore it."""


class CheckedConsole(CheckedDevice, ConsoleDevice):
    """A console that checks its work on each buffer."""

    def __init__(self, ram: CheckedRam, tracer: RecordingTracer) -> None:
        super().__init__(ram, ram.memory, tracer, ports=NAMES[:1], max_ports=MAX_PORTS)

    def serve(self, queue: int, chain: Chain) -> int | None:
        self.served += 1
        self.ram.on_access()
        return super().serve(queue, chain)

    def serve_stream(self, queue: int, chains: list[Chain]) -> int:
        check(len(chains) <= STREAM_BUFFERS_PER_CALL, f"{len(chains)} buffers of a stream at once")
        self.ram.on_access()
        return super().serve_stream(queue, chains)

    def _fill(
        self, index: int, is_pending: Callable[[], bool], write: Callable[[Chain], int]
    ) -> bool:
        def checked_write(chain: Chain) -> int:
            self.ram.touched |= page_oracle.touched_by(chain.writable_segments)
            self.ram.on_access()
            return write(chain)

        return super()._fill(index, is_pending, checked_write)

    def check_buffers(self) -> None:
        """As `CheckedDevice.check_buffers`; the stalled queues have one buffer in flight."""
        self.in_flight = [int(queue.stalled) for queue in self.queues]
        super().check_buffers()
        limit = PendingMessages.MAX_PER_PORT * MAX_PORTS
        check(len(self._pending) <= limit, f"{len(self._pending)} messages are pending")

    def must_be_empty(self, queue: DeviceQueue) -> bool:
        """As `CheckedDevice.must_be_empty`; receive buffers wait for input or messages."""
        if queue.index == CONTROL_RECEIVE:
            return len(self._pending) > 0
        return queue.index % 2 == 1

    def settle(self) -> None:
        """Give every host room for everything."""
        for port in self.ports.values():
            if isinstance(port.host, CheckedHost):
                port.host.room = 1 << 40
            port.resume()


class CheckedConsoleBoard(CheckedBoard):
    """A board with such a console."""

    def __init__(self) -> None:
        tracer = RecordingTracer()
        self.checked_console = CheckedConsole(CheckedRam(), tracer)
        super().__init__(self.checked_console, tracer)

    def port(self, index: int) -> ConsolePort:
        """Return one of the ports, by any number."""
        ports = list(self.checked_console.ports.values())
        return ports[index % len(ports)]

    def check_idle(self) -> None:
        """As `CheckedBoard.check_idle`, with hosts that accept everything."""
        self.ram.on_access = lambda: None
        self.checked_console.settle()
        super().check_idle()
        for port in self.checked_console.ports.values():
            stalled = self.checked_console.queues[transmit_queue(port.number)].stalled
            check(not stalled or not self.checked_console.live, f"{port.name} stays stalled")
