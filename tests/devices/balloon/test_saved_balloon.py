# SPDX-License-Identifier: Apache-2.0
"""A balloon that is saved and restored behaves for any guest as if it had never been saved.

Two boards run the same program of `tests.fuzz.guest_program`. After some instructions one of them
is saved and restored into a new board over the same RAM. From then on, after every instruction,
memory (rings included), registers, interrupts, host notifiers and discards of both must be equal.

The other board does what a restore also does: it serves all queues and repeats all
notifications, because some may not have been delivered, and drops requests to the guest, which
belong to the process that made the snapshot.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from devices.balloon.dialects import BITMAP, HYBRID, RANGES, STANDARD, Dialect, Role
from devices.balloon.hinting import DONE, FIRST_ID
from devices.balloon.misc import MiscCommand
from devices.state import Payload, encode
from devices.testing.balloon.driver import BalloonBoard
from devices.testing.ram import AnonymousRam
from devices.testing.states import restores, transfer_state
from devices.testing.strategies import corrupted
from pyvmm_native.runs import PageRuns
from tests.fuzz.balloon_program import BalloonGuest
from tests.fuzz.careless_driver import ALL_ONES
from tests.fuzz.checked_balloon import CheckedBalloonBoard
from tests.fuzz.checked_board import REGIONS
from tests.fuzz.guest_program import RING_SIZES, Program

instructions = st.builds(
    lambda opcode, operands: bytes([opcode]) + operands,
    st.integers(0, len(BalloonGuest.INSTRUCTIONS) - 1),
    st.binary(max_size=12),
)
programs = st.lists(instructions, max_size=40).map(b"".join)
dialects = st.sampled_from([STANDARD, BITMAP, HYBRID, RANGES])
wanted = st.sampled_from([0, 0, 1 << 1, 1 << 28, 1 << 29, 1 << 40]).map(lambda bit: ALL_ONES ^ bit)


def new_guest(dialect: Dialect, program: bytes, wanted: int, ring_size: int) -> BalloonGuest:
    guest = BalloonGuest(CheckedBalloonBoard(dialect, dialect.features.known), Program(program))
    guest.ring_size = ring_size
    guest.place_bars()
    guest.start(wanted)
    enable_msix(guest)
    return guest


def enable_msix(guest: BalloonGuest) -> None:
    """Give every vector but the last, which stays masked, a message of its own."""
    board, function = guest.board, guest.board.function
    for vector in range(board.transport.msix.vectors):
        base = 0xC000_0000 + 0x10_0000 + 16 * vector
        for i, word in enumerate((0xFEE0_0000, 0, 0x40 + vector)):
            board.mmio.write(base + 4 * i, 4, word)
        board.mmio.write(base + 12, 4, vector == board.transport.msix.vectors - 1)
    pointer = function.config_read(0x34, 1)
    while function.config_read(pointer, 1) != 0x11:
        pointer = function.config_read(pointer + 1, 1)
    function.config_write(pointer + 2, 2, 1 << 15)
    for queue in range(len(board.device.queues)):
        board.mmio.write(0xC000_0000 + 0x16, 2, queue)
        board.mmio.write(0xC000_0000 + 0x1A, 2, queue + 1)
    board.mmio.write(0xC000_0000 + 0x10, 2, 0)


class BoardRecorder:
    """Records all observable behaviour of a board from its creation on."""

    def __init__(self, guest: BalloonGuest) -> None:
        self.guest = guest
        self.board = guest.board
        self.sent: list[tuple[int, int, int]] = []
        self.board.msi.on_trigger = self._sent
        self.board.notifiers.notified[:] = sorted(self.board.notifiers.assigned)
        self.discards = len(self.board.ram.discarded)

    def _sent(self, vector: int) -> None:
        self.sent.append((vector, *self.board.msi.routes[vector]))

    def seen(self) -> dict[str, object]:
        board = self.board
        return {
            "memory": [bytes(area) for _, area in board.ram.maps],
            "state": board.transport.save_state(),
            "ports": self.guest.config_ports.save_state(),
            "sent": self.sent,
            "line": board.line.level,
            "host notifiers": (board.notifiers.assigned, board.notifiers.notified),
            "discards": [list(runs) for runs in board.ram.discarded[self.discards :]],
            "balloon": (
                board.checked_balloon.counters,
                board.checked_balloon.actual,
                board.checked_balloon.num_pages,
            ),
            "decoded": [board.function.bar_gpa(bar) for bar in (0, 2)],
            "live": [board.checked_balloon.has_live(role) for role in Role],
        }


def forget_and_repeat(board: CheckedBalloonBoard) -> None:
    """Do what a restore does beyond restoring."""
    balloon = board.checked_balloon
    balloon.misc.cancel()
    if balloon.hinting.last_id >= FIRST_ID:
        balloon.hinting._on_end = None
        balloon.hinting._begun = False
        balloon.hinting.pages = PageRuns()
        balloon.config["free_page_hint_cmd_id"] = DONE
    for queue in balloon.queues:
        if queue.ring is not None:
            queue.ring.next_used = (
                queue.ring.next_used
            )  # the next notification repeats earlier ones
    balloon.repeat_notifications()


def move_guest(guest: BalloonGuest) -> None:
    """Save the board of `guest` and continue on a new one with the restored state."""
    old, old_ports = guest.board, guest.config_ports
    new = CheckedBalloonBoard(old.checked_balloon.dialect, old.checked_balloon.offered, old.ram)
    guest.attach(new)
    new.checked_balloon.in_flight[:] = old.checked_balloon.in_flight
    transfer_state(old.transport, new.transport)
    transfer_state(old_ports, guest.config_ports)
    assert set(new.notifiers.notified) == new.notifiers.assigned.keys(), (
        "every live queue is served"
    )


@settings(max_examples=250, deadline=None)
@given(programs, programs, dialects, wanted, st.sampled_from(RING_SIZES))
def test_a_restored_balloon_behaves_like_one_never_saved(
    before: bytes, after: bytes, dialect: Dialect, wanted: int, ring_size: int
) -> None:
    stays, moves = (new_guest(dialect, before, wanted, ring_size) for _ in range(2))
    stays.run()
    moves.run()
    forget_and_repeat(stays.board)
    move_guest(moves)
    stays.program, moves.program = Program(after), Program(after)
    staying, moving = BoardRecorder(stays), BoardRecorder(moves)
    assert moving.seen() == staying.seen()
    while stays.step():
        moves.step()
        assert moving.seen() == staying.seen()
    stays.board.check_idle()
    moves.board.check_idle()


@settings(max_examples=400, deadline=None)
@given(programs, dialects, st.data())
def test_hostile_states_are_refused_and_change_nothing(
    program: bytes, dialect: Dialect, data: st.DataObject
) -> None:
    guest = new_guest(dialect, program, ALL_ONES, 8)
    guest.run()
    ram = AnonymousRam(*REGIONS)
    ram.maps[0][1][:] = guest.memory[:]
    new = BalloonBoard(dialect, ram=ram, offered=dialect.features.known)
    state: Payload = data.draw(corrupted(guest.board.transport.save_state()))
    if restores(new.transport, state):
        for queue in range(len(new.device.queues)):
            new.transport.serve_queue(queue)  # serving any accepted state is harmless
        new.balloon.request_stats()
        new.balloon.misc.request(MiscCommand.SYNC, lambda answer: None)
        encode(new.transport.save_state())
        new.device.write_status(0)
    else:
        assert not new.notifiers.notified
        assert not new.msi.triggered
