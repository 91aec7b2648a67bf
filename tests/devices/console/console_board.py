# SPDX-License-Identifier: Apache-2.0
"""A console on a board, a driver that speaks its protocol, and a host with limited room."""

from __future__ import annotations

from collections.abc import Sequence

from devices.console.control import HEADER, Event
from devices.console.device import ConsoleDevice
from devices.console.queues import (
    CONTROL_RECEIVE,
    CONTROL_TRANSMIT,
    receive_queue,
    transmit_queue,
)
from devices.testing.board import Board
from devices.testing.driver import ALL_FEATURES, VirtioDriver
from devices.testing.ram import AnonymousRam
from devices.testing.recorders import RecordingTracer
from pyvmm_native.chain_reader import ChainReader

RAM_BYTES = 384 << 20
PAGE = 4096
BAD_ID = 0xFFFF_FFFF
UNLIMITED = 1 << 40


class RecordingHost:
    """`PortHost` that keeps `output` and accepts `room` more bytes; counts its notifications."""

    def __init__(self, room: int = UNLIMITED) -> None:
        self.room = room
        self.output = b""
        self.rooms_available = 0
        self.guest_open: list[bool] = []
        self.was_unplugged = False

    def write(self, output: ChainReader) -> int:
        accepted = output.read(self.room)
        self.room -= len(accepted)
        self.output += accepted
        return len(accepted)

    def room_available(self) -> None:
        self.rooms_available += 1

    def guest_open_changed(self, is_open: bool) -> None:
        self.guest_open.append(is_open)

    def unplugged(self) -> None:
        self.was_unplugged = True


class ConsoleBoard(Board):
    """A board with a console that has the given ports."""

    def __init__(
        self,
        ports: Sequence[str] = (),
        *,
        console: bool = True,
        ram: AnonymousRam | None = None,
    ) -> None:
        self.ram = ram or AnonymousRam((0, RAM_BYTES))
        tracer = RecordingTracer()
        self.console = ConsoleDevice(self.ram.memory, tracer, console=console, ports=ports)
        super().__init__(self.console, tracer)


class ConsoleDriver(VirtioDriver):
    """Driver of the console on `board`, at DRIVER_OK; messages received are in `messages`.

    A message is (id, event, value, the bytes behind it). `console` is the device.
    """

    def __init__(self, board: ConsoleBoard, *, features: int = ALL_FEATURES) -> None:
        super().__init__(board)
        self.attach(board)
        self.messages: list[tuple[int, int, int, bytes]] = []
        self.start(features=features)

    def attach(self, board: ConsoleBoard) -> None:
        """Drive the device on `board` from now on, to which the state was transferred."""
        self.board = self.console_board = board
        self.console = board.console

    def get_ready(self, *, control_buffers: int = 32) -> ConsoleDriver:
        """Supply control buffers and send DEVICE_READY; set up and open all ports announced."""
        self.supply_control(control_buffers)
        self.control(BAD_ID, Event.DEVICE_READY, 1)
        self.set_up_ports()
        return self

    def set_up_ports(self) -> None:
        """Set up and open the ports announced and not set up yet, with 16 receive buffers each."""
        added = [port for port, event, _, _ in self.take_messages() if event == Event.DEVICE_ADD]
        for port in added:
            self.supply(port, 16)
            self.control(port, Event.PORT_READY, 1)
            self.control(port, Event.PORT_OPEN, 1)

    def supply_control(self, count: int, size: int = PAGE) -> None:
        for _ in range(count):
            self.queues[CONTROL_RECEIVE].add([], [size])
        self.kick(CONTROL_RECEIVE)

    def kick(self, queue: int) -> None:
        self.notify(queue)
        self.board.serve()

    def control(self, port: int, event: int, value: int) -> None:
        self.send(CONTROL_TRANSMIT, [HEADER.pack(port, event, value)])

    def take_messages(self) -> list[tuple[int, int, int, bytes]]:
        """Return the messages received since the last call, and keep them in `messages`."""
        taken = []
        for used in self.queues[CONTROL_RECEIVE].take_used():
            if used.length:
                taken.append((*HEADER.unpack_from(used.data), used.data[HEADER.size :]))
            self.queues[CONTROL_RECEIVE].add([], [PAGE])
        self.messages += taken
        return taken

    def supply(self, port: int, count: int, size: int = PAGE) -> None:
        """Supply `count` buffers of `size` bytes for input on `port`."""
        for _ in range(count):
            self.queues[receive_queue(port)].add([], [size])
        self.kick(receive_queue(port))

    def read(self, port: int) -> bytes:
        """Return the input received on `port` since the last call."""
        return b"".join(used.data for used in self.queues[receive_queue(port)].take_used())

    def write(self, port: int, *buffers: bytes) -> int:
        """Transmit buffers on `port` with one notification; return the number returned so far."""
        queue = self.queues[transmit_queue(port)]
        for data in buffers:
            queue.add([data])
        self.kick(transmit_queue(port))
        return len(queue.take_used())
