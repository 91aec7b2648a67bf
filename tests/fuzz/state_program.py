# SPDX-License-Identifier: Apache-2.0
"""An interpreter of bytes as corruptions of a saved device state, for the fuzzer and the tests.

Invariant: a device either applies a state, and can then be used, saved and reset like any other, or
raises `StateError` and is unchanged. Nothing else happens, whatever the state contains.

The first byte chooses a device that a guest has used. The others corrupt its saved state, change by
change: a position in the payload, and its new value. `tests.fuzz.snapshot_file_program` covers
payloads that cannot be decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

from devices.balloon.device import BalloonDevice
from devices.balloon.dialects import BITMAP, HYBRID, STANDARD, Dialect
from devices.balloon.misc import MiscCommand
from devices.console.device import ConsoleDevice
from devices.console.queues import transmit_queue
from devices.legacy.rtc import Rtc
from devices.legacy.uart import Uart16550
from devices.state import Fields, Payload, StateError, Stateful, encode
from devices.testing.balloon.driver import STATS, BalloonBoard
from devices.testing.balloon.misc import MISC
from devices.testing.board import Board
from devices.testing.ram import AnonymousRam
from devices.testing.recorders import RecordingInterruptLine, RecordingTracer
from devices.testing.states import mutable_copy, payload_items
from devices.virtio.pci_transport import VirtioPciTransport
from tests.fuzz.balloon_program import BalloonGuest
from tests.fuzz.careless_driver import ALL_ONES, WRITE
from tests.fuzz.checked_balloon import CheckedBalloonBoard
from tests.fuzz.checked_board import DRIVER_BYTES, REGIONS
from tests.fuzz.checked_console import MAX_PORTS, NAMES, CheckedConsoleBoard, CheckedHost
from tests.fuzz.console_program import ConsoleGuest, set_up_ports
from tests.fuzz.guest_program import EDGES, OutOfBytes, Program
from tests.fuzz.object_state import ObjectState

NUMBERS = [0, 1, 2, 3, 4, 7, 15, 16, 127, 128, 255, 0xFFFF, 1 << 16, 1 << 31, 1 << 63, *EDGES]


def used_balloon(dialect: Dialect) -> Board:
    """Return a board whose guest has used every queue, with buffers in flight where possible."""
    checked = CheckedBalloonBoard(dialect, dialect.features.known)
    guest = BalloonGuest(checked, Program(b""))
    guest.place_bars()
    guest.start(ALL_ONES)
    guest.add(STATS, [], False)
    if dialect is not STANDARD:
        guest.add(MISC, [(guest.place(bytes(16)), 16, WRITE)], False)
    for queue in range(len(checked.device.queues)):
        guest.ring(queue)
    guest.serve_all()
    ram = AnonymousRam(*REGIONS)
    ram.maps[0][1][:] = guest.memory[:]
    board = BalloonBoard(dialect, ram=ram, offered=dialect.features.known)
    board.transport.restore_state(Fields("used", checked.transport.save_state()))
    return board


def used_console() -> Board:
    """Return a board whose guest has set its ports up, with output in flight."""
    checked = CheckedConsoleBoard()
    guest = ConsoleGuest(checked, Program(b""))
    guest.place_bars()
    guest.start(ALL_ONES)
    checked.checked_console.ports["first"].connect(CheckedHost(room=3))
    set_up_ports(guest)
    guest.add(transmit_queue(1), [(guest.place(b"output"), 6, 0)], False)
    guest.serve_all()
    checked.checked_console.add_port("second")
    ram = AnonymousRam(*REGIONS)
    ram.maps[0][1][:] = guest.memory[:]
    tracer = RecordingTracer()
    board = Board(ConsoleDevice(ram.memory, tracer, ports=NAMES[:1], max_ports=MAX_PORTS), tracer)
    board.transport.restore_state(Fields("used", checked.transport.save_state()))
    return board


def used_uart() -> Uart16550:
    uart = Uart16550(RecordingInterruptLine(), lambda data: None)
    for register, value in ((2, 0xC1), (4, 0x08), (1, 0x0F), (0, 0x41)):
        uart.write(register, 1, value)
    uart.receive(b"typed")
    return uart


MAKERS: tuple[Callable[[], Stateful], ...] = (
    lambda: used_balloon(STANDARD).transport,
    lambda: used_balloon(BITMAP).transport,
    used_uart,
    lambda: Rtc(lambda: 0.0, 3 << 30, 0),
    lambda: used_console().transport,
    lambda: used_balloon(HYBRID).transport,
)


@cache
def _part(index: int) -> tuple[Stateful, Callable[[], None], Payload]:
    """Return a part, a function that restores it as it is now, and its saved state."""
    part = MAKERS[index]()
    objects, state = ObjectState(part), part.save_state()
    if not isinstance(part, VirtioPciTransport):
        return part, objects.restore, state
    memory = part.device.memory
    rings = memory.read(0, DRIVER_BYTES)

    def restore() -> None:
        objects.restore()
        memory.write(0, rings)

    return part, restore, state


def run(data: bytes) -> bool:
    """Restore a state that `data` corrupts; return whether the part applied it."""
    program = Program(data)
    # The virtio devices have most of the fields.
    part, reset_part, state = _part((0, 0, 1, 5, 4, 4, 2, 3)[program.byte() % 8])
    payload = mutable_copy(state)
    with suppress(OutOfBytes):
        while payload:
            _corrupt(payload, program)
    try:
        part.restore_state(Fields("hostile", payload))
    except StateError:
        assert part.save_state() == state, "it was refused and changed something"
        return False
    else:
        encode(part.save_state())
        _exercise(part)
    finally:
        reset_part()
    return True


def _exercise(part: Stateful) -> None:
    """Use a restored part as a machine and a rebooted guest would."""
    if isinstance(part, VirtioPciTransport):
        for queue in range(len(part.device.queues)):
            part.serve_queue(queue)
        if isinstance(part.device, BalloonDevice):
            part.device.request_stats()
            part.device.misc.request(MiscCommand.SYNC, lambda answer: None)
            part.device.set_target(1)
        elif isinstance(part.device, ConsoleDevice):
            for port in part.device.ports.values():
                port.connect(CheckedHost(room=2))
                port.offer(b"input")
        part.device.write_status(0)
    elif isinstance(part, Uart16550):
        part.receive(b"more")
        for register in range(8):
            part.read(register, 1)
            part.write(register, 1, 0xFF)
    elif isinstance(part, Rtc):
        for index in range(128):
            part.write(0, 1, index)
            part.read(1, 1)
    encode(part.save_state())


def _corrupt(payload: Any, program: Program) -> None:
    where = list(payload_items(payload))
    holder, key = where[(program.opcode() << 8 | program.byte()) % len(where)]
    action = program.byte() % 10
    if action == 0:
        del holder[key]
    elif action == 1 and isinstance(holder, dict):
        holder[f"n{program.byte() % 4}"] = program.byte()
    elif action == 2 and isinstance(holder, list):
        holder.append(holder[key])
    elif action == 3:
        holder[key] = (b"", b"\x01" * program.byte(), "bitmap", [], {}, True)[program.byte() % 6]
    elif action == 4 and isinstance(holder[key], bytes):
        at = program.byte() % (len(holder[key]) or 1)
        holder[key] = holder[key][:at] + program.take(1) + holder[key][at + 1 :]
    elif action < 7 and type(holder[key]) is int:
        holder[key] ^= 1 << program.byte() % 64
    else:
        holder[key] = program.pick(NUMBERS, 8)
