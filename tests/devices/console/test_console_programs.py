# SPDX-License-Identifier: Apache-2.0
"""Guests and hosts generated from bytes: the programs of the fuzzer; see `tests.fuzz`."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from devices.console.queues import transmit_queue
from tests.fuzz import console_program
from tests.fuzz.careless_driver import ALL_ONES
from tests.fuzz.checked_console import CheckedConsoleBoard, CheckedHost
from tests.fuzz.console_program import ConsoleGuest
from tests.fuzz.guest_program import Program


@given(st.binary(max_size=250))
@example(bytes(250))
def test_no_program_breaks_an_invariant(program: bytes) -> None:
    console_program.run(program)


def test_a_well_behaved_guest_is_served() -> None:
    board = CheckedConsoleBoard()
    host = CheckedHost(room=3)
    board.checked_console.ports["first"].connect(host)
    guest = ConsoleGuest(board, Program(b""))
    guest.place_bars()
    guest.start(ALL_ONES)
    data = guest.place(b"output")
    guest.add(transmit_queue(1), [(data, 6, 0)], False)
    guest.serve_all()
    assert host.room == 0
    board.check_idle()
    assert board.checked_console.ports["first"].output_bytes == len(b"output")
