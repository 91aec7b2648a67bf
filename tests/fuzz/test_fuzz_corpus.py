# SPDX-License-Identifier: Apache-2.0
"""Replay the fuzzer's corpus, and check that the checked board finds planted errors.

Invariant: that of `guest_program`. `make fuzz` starts from this corpus and adds to it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from devices.balloon.dialects import NAMES, STANDARD, by_name
from devices.balloon.page_queues import InflateQueue
from devices.testing.balloon.driver import INFLATE, STATS
from devices.virtio.device import VirtioDevice
from pyvmm_native.memory import GuestMemory
from pyvmm_native.runs import PageRuns
from tests.fuzz import balloon_program, console_program, corpus
from tests.fuzz.balloon_program import PATTERN_PFNS, BalloonGuest
from tests.fuzz.careless_driver import ALL_ONES, NEXT, WRITE, descriptor
from tests.fuzz.checked_balloon import CheckedBalloonBoard
from tests.fuzz.checked_board import Finding
from tests.fuzz.guest_program import Program
from tests.fuzz.object_state import ObjectState


@pytest.mark.parametrize(
    ("device", "run"), [("balloon", balloon_program.run), ("console", console_program.run)]
)
def test_replay_of_the_corpus(device: str, run: Callable[[bytes], object]) -> None:
    programs = corpus.programs(device)
    assert len(programs) > 100
    for program in programs:
        try:
            run(program)
        except BaseException as error:
            error.add_note(f"by {program.hex()}")
            raise


def guest() -> BalloonGuest:
    guest = BalloonGuest(CheckedBalloonBoard(STANDARD, STANDARD.features.known), Program(b""))
    guest.place_bars()
    guest.start(ALL_ONES)
    return guest


def send(guest: BalloonGuest, queue: int, data: bytes) -> None:
    guest.add(queue, [(guest.place(data), len(data), 0)], False)
    guest.serve_all()
    guest.board.check_idle()


def inflate(guest: BalloonGuest, *pfns: int) -> None:
    send(guest, INFLATE, struct.pack(f"<{len(pfns)}I", *pfns))


def test_a_well_behaved_guest_is_served() -> None:
    honest = guest()
    inflate(honest, PATTERN_PFNS[0], PATTERN_PFNS[-10])
    assert honest.board.ram.touched >= {PATTERN_PFNS[0], PATTERN_PFNS[-10]}
    assert honest.board.checked_balloon.counters.inflate.pages == 2
    honest = guest()
    send(honest, STATS, bytes(10))
    assert honest.board.checked_balloon.in_flight[STATS] == 1


def test_discarding_an_unnamed_page_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(queue: InflateQueue, runs: PageRuns, pages: int) -> None:
        queue._ram.discard(PageRuns([(PATTERN_PFNS[0], 2)]))

    monkeypatch.setattr(InflateQueue, "serve_pages", serve)
    with pytest.raises(Finding, match="discards"):
        inflate(guest(), PATTERN_PFNS[0])


def test_a_missing_discard_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InflateQueue, "serve_pages", lambda queue, runs, pages: None)
    with pytest.raises(Finding, match="named"):
        inflate(guest(), PATTERN_PFNS[0])


def test_a_stray_write_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(queue: InflateQueue, runs: PageRuns, pages: int) -> None:
        memory: GuestMemory = queue._ram.memory
        memory.write(PATTERN_PFNS[5] * 4096, b"?")
        queue._ram.discard(PageRuns([(PATTERN_PFNS[0], 1)]))

    monkeypatch.setattr(InflateQueue, "serve_pages", serve)
    with pytest.raises(Finding, match="not the device's to write"):
        inflate(guest(), PATTERN_PFNS[0])


def test_a_lost_buffer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VirtioDevice, "_serve", lambda device, queue, ring, chain: False)
    refused = guest()
    refused.add(INFLATE, [(refused.place(b"bad"), 3, 0)], False)
    with pytest.raises(Finding, match="buffers of inflate taken"):
        refused.serve_all()


def test_endless_work_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VirtioDevice, "_drain", lambda device, queue, ring: True)
    with pytest.raises(Finding, match="is never idle"):
        inflate(guest(), PATTERN_PFNS[0])


def test_the_ring_may_change_between_two_buffers() -> None:
    """`write_later` changes memory between two buffers of one call."""
    changing = guest()
    pfn = struct.pack("<I", PATTERN_PFNS[0])
    # A buffer with a writable part is taken alone.
    changing.add(INFLATE, [(changing.place(pfn), 4, 0), (changing.place(pfn), 4, WRITE)], False)
    changing.add(INFLATE, [(changing.place(pfn), 4, 0)], False)
    # While the first buffer is served, the chain of the second becomes a loop.
    ring = changing.rings[INFLATE]
    changing.later = [(ring.desc + 2 * 16, descriptor(0, 4, NEXT, 2))]
    changing.serve_all()
    assert changing.board.device.status & 64
    changing.board.check_idle()


def test_restoring_the_object_state_restores_the_board() -> None:
    for dialect in map(by_name, NAMES):
        board = CheckedBalloonBoard(dialect, dialect.features.known)
        saved = ObjectState(board)
        states = []
        for _ in range(2):
            driven = BalloonGuest(board, Program(b""))
            driven.place_bars()
            driven.start(ALL_ONES)
            pages = (PATTERN_PFNS[0] * 4096, 4096, WRITE)
            driven.add(INFLATE, [pages], False)
            driven.kick()
            driven.serve_all()
            states.append(
                (list(board.tracer.events), board.device.status, list(board.msi.triggered))
            )
            saved.restore()
            assert board.function.bar_gpa(0) is None
            assert board.device.status == 0
            assert board.tracer.events == []
        assert states[0] == states[1]
