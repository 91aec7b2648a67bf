# SPDX-License-Identifier: Apache-2.0
"""Bytes as the actions of a guest's console driver, and of the hosts of its ports.

See `guest_program`. The first two bytes choose the features accepted, the size of the rings, the
room of the hosts, and whether the device is initialised and its ports are set up; mostly they are.
"""

from __future__ import annotations

from functools import cache

from devices.console.control import HEADER, Event
from devices.console.port import ConsolePort
from devices.console.queues import CONTROL_RECEIVE, CONTROL_TRANSMIT
from devices.virtio import features
from tests.fuzz.careless_driver import ALL_ONES, WRITE
from tests.fuzz.checked_console import MAX_PORTS, NAMES, CheckedConsoleBoard, CheckedHost
from tests.fuzz.guest_program import LENGTHS, RING_SIZES, Guest, Program
from tests.fuzz.object_state import ObjectState

ROOM = [0, 1, 7, 64, 1000, 1 << 20]


class ConsoleGuest(Guest):
    """A guest that runs one program on `board`, with the console's messages and data."""

    board: CheckedConsoleBoard

    def port(self) -> ConsolePort:
        return self.board.port(self.program.byte())

    # Instructions.

    def send_message(self) -> None:
        """Send a control message, mostly one that a driver sends."""
        program = self.program
        number, shape = program.byte() % (MAX_PORTS + 1), program.byte()
        event = (Event.PORT_OPEN, Event.PORT_READY, Event.DEVICE_READY, Event.PORT_OPEN)[shape & 3]
        message = bytearray(HEADER.pack(number, event, shape >> 2 & 1))
        if shape > 224:
            message[program.byte() % len(message)] ^= program.byte()
        if shape > 248:
            message = message[: program.byte() % 8]
        self.add(CONTROL_TRANSMIT, [(self.place(bytes(message)), len(message), 0)], bool(shape & 8))

    def transmit(self) -> None:
        """Transmit data in one or two descriptors, on any queue."""
        queue, count = self.queue(), self.program.byte()
        data = self.program.take(count % 97)
        cut = len(data) * (count >> 6) // 3
        elements = [(self.place(part), len(part), 0) for part in (data[:cut], data[cut:])]
        if count == 255:
            elements.append((self.place(bytes(4)), 4, WRITE))
        self.add(queue, elements, bool(count & 1))

    def supply(self) -> None:
        """Supply buffers for input, or for control messages."""
        program = self.program
        queue, shape = self.queue(), program.byte()
        if shape & 1:
            queue = CONTROL_RECEIVE
        for _ in range(shape >> 1 & 3):
            length = program.pick([4, 7, 8, 12, 64, 100], 1)
            self.add(queue, [(self.place(bytes(length)), length, WRITE)], bool(shape & 8))

    def supply_pages(self) -> None:
        """Supply a buffer of any address and length for input."""
        element = (self.gpa(), self.program.pick(LENGTHS, 4), WRITE)
        self.add(self.queue() & ~1, [element], bool(self.program.byte() & 1))

    def offer(self) -> None:
        """Offer input to a port."""
        self.port().offer(bytes(self.program.byte() * 3))

    def make_room(self) -> None:
        """Give the host of a port room for more output."""
        port = self.port()
        if isinstance(port.host, CheckedHost):
            port.host.room = min(port.host.room + self.program.pick(ROOM, 1), 1 << 20)
        port.resume()

    def plug(self) -> None:
        """Connect or disconnect a host, resize, plug in a port or unplug one."""
        port, action = self.port(), self.program.byte()
        console = self.board.checked_console
        free = [name for name in NAMES if name not in console.ports]
        if action % 5 == 0 and port.host is None:
            port.connect(CheckedHost(ROOM[action // 5 % len(ROOM)]))
        elif action % 5 == 1:
            port.disconnect()
        elif action % 5 == 2:
            port.resize(action, self.program.byte())
        elif action % 5 == 3 and free and len(console.ports) < MAX_PORTS:
            console.add_port(free[0])
        elif action % 5 == 4 and not port.is_console:
            console.remove_port(port)

    INSTRUCTIONS = (
        send_message, send_message, send_message, transmit, transmit, transmit, transmit,
        supply, supply, supply, supply_pages, offer, offer, make_room, make_room, plug, plug,
        Guest.send_bytes, Guest.send_elements, Guest.write_descriptor, Guest.write_index,
        Guest.write_memory, Guest.write_later, Guest.add_again, Guest.kick, Guest.serve_once,
        Guest.serve_once, Guest.serve_all, Guest.serve_all, Guest.restart, Guest.reset_queue,
        Guest.access_bar, Guest.access_config, Guest.place_ring, Guest.serve_once,
        Guest.serve_all,
    )  # fmt: skip


@cache
def _board(corruption: int, room: int, started: int) -> tuple[CheckedConsoleBoard, ObjectState]:
    """Return the board for one start configuration, and its state to restore."""
    board = CheckedConsoleBoard()
    if started:
        for port in board.checked_console.ports.values():
            port.connect(CheckedHost(room))
        guest = ConsoleGuest(board, Program(b""))
        guest.place_bars()
        guest.start(ALL_ONES ^ corruption)
        if started > 1:
            set_up_ports(guest)
    board.ram.on_access = lambda: None
    return board, ObjectState(board)


def set_up_ports(guest: ConsoleGuest) -> None:
    """Announce that the driver is ready, and open all ports."""
    messages = [(ALL_ONES & 0xFFFFFFFF, Event.DEVICE_READY, 1)]
    messages += [
        (port, event, 1) for port in (0, 1) for event in (Event.PORT_READY, Event.PORT_OPEN)
    ]
    for _ in range(4):
        guest.add(CONTROL_RECEIVE, [(guest.place(bytes(32)), 32, WRITE)], False)
    for message in messages:
        guest.add(CONTROL_TRANSMIT, [(guest.place(HEADER.pack(*message)), HEADER.size, 0)], False)
        guest.serve_all()


def run(data: bytes) -> CheckedConsoleBoard:
    """Run `data` as a guest; raise any violation of the invariant."""
    program = Program(data)
    choice, wanted = program.byte(), program.byte()
    corruption = features.EVENT_IDX * bool(wanted & 1) | features.INDIRECT_DESC * (wanted >= 0xC0)
    corruption |= 2 if wanted & 0x3E == 0x3E else 0  # without MULTIPORT
    started = 0 if choice >= 0xF8 else 1 if choice >= 0xE0 else 2
    board, initial = _board(corruption, ROOM[wanted >> 1 & 3], started)
    try:
        guest = ConsoleGuest(board, program)
        guest.ring_size = RING_SIZES[choice >> 3 & 3]
        guest.run()
        board.check_idle()
    finally:
        initial.restore()
        board.ram.check_and_refill()
    return board
