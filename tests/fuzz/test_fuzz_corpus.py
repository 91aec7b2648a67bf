# SPDX-License-Identifier: Apache-2.0
"""Every guest the fuzzer ever found interesting, again; and that its watch is not asleep.

Invariant: as `guest_program`. The corpus is what `make fuzz` starts from and adds to.
"""

from __future__ import annotations

import struct

import pytest

from devices.balloon.dialects import BITMAP, STANDARD
from devices.balloon.page_queues import InflateQueue
from devices.testing.balloon.driver import INFLATE, STATS
from devices.virtio.device import VirtioDevice
from pyvmm_native.memory import GuestMemory
from pyvmm_native.ring import Chain
from pyvmm_native.runs import PageRuns
from tests.fuzz import corpus, guest_program
from tests.fuzz.careless_driver import ALL_ONES, NEXT, WRITE, descriptor
from tests.fuzz.guest_program import KEPT_PFNS, Guest, Program
from tests.fuzz.snapshot import Snapshot
from tests.fuzz.watched_board import Finding, WatchedBoard


def test_the_corpus_again() -> None:
    programs = corpus.programs()
    assert len(programs) > 100
    for program in programs:
        try:
            guest_program.run(program)
        except BaseException as error:
            error.add_note(f"by {program.hex()}")
            raise


def guest() -> Guest:
    guest = Guest(WatchedBoard(STANDARD, STANDARD.features.known), Program(b""))
    guest.plug_in()
    guest.start(ALL_ONES)
    return guest


def send(guest: Guest, queue: int, data: bytes) -> None:
    guest.add(queue, [(guest.place(data), len(data), 0)], False)
    guest.serve_all()
    guest.board.check_at_rest()


def inflate(guest: Guest, *pfns: int) -> None:
    send(guest, INFLATE, struct.pack(f"<{len(pfns)}I", *pfns))


def test_an_honest_guest_is_served() -> None:
    honest = guest()
    inflate(honest, KEPT_PFNS[0], KEPT_PFNS[-10])
    assert honest.board.ram.touched >= {KEPT_PFNS[0], KEPT_PFNS[-10]}
    assert honest.board.watched.counters.inflate.pages == 2
    honest = guest()
    send(honest, STATS, bytes(10))
    assert honest.board.watched.kept[STATS] == 1


def test_a_page_too_many_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(queue: InflateQueue, chain: Chain) -> int:
        queue._ram.discard(PageRuns([(KEPT_PFNS[0], 2)]))
        return 0

    monkeypatch.setattr(InflateQueue, "serve", serve)
    with pytest.raises(Finding, match="discards"):
        inflate(guest(), KEPT_PFNS[0])


def test_a_page_too_few_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InflateQueue, "serve", lambda queue, chain: 0)
    with pytest.raises(Finding, match="named"):
        inflate(guest(), KEPT_PFNS[0])


def test_a_stray_write_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(queue: InflateQueue, chain: Chain) -> int:
        memory: GuestMemory = queue._ram.memory
        memory.write(KEPT_PFNS[5] * 4096, b"?")
        queue._ram.discard(PageRuns([(KEPT_PFNS[0], 1)]))
        return 0

    monkeypatch.setattr(InflateQueue, "serve", serve)
    with pytest.raises(Finding, match="nobody gave it away"):
        inflate(guest(), KEPT_PFNS[0])


def test_a_lost_buffer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VirtioDevice, "_serve", lambda device, queue, ring, chain: False)
    with pytest.raises(Finding, match="buffers of inflate out"):
        inflate(guest(), KEPT_PFNS[0])


def test_endless_work_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VirtioDevice, "_drain", lambda device, queue, ring: True)
    with pytest.raises(Finding, match="does not come to an end"):
        inflate(guest(), KEPT_PFNS[0])


def test_a_guest_that_changes_its_ring_meanwhile() -> None:
    """`LATER` reaches memory between two buffers of one call."""
    changing = guest()
    pfn = struct.pack("<I", KEPT_PFNS[0])
    changing.add(INFLATE, [(changing.place(pfn), 4, 0)], False)
    changing.add(INFLATE, [(changing.place(pfn), 4, 0)], False)
    # While the first is served the second becomes a loop.
    ring = changing.rings[INFLATE]
    changing.later = [(ring.desc + 16, descriptor(0, 4, NEXT, 1))]
    changing.serve_all()
    assert changing.board.device.status & 64
    changing.board.check_at_rest()


def test_a_snapshot_brings_everything_back() -> None:
    for dialect in (STANDARD, BITMAP):
        board = WatchedBoard(dialect, dialect.features.known)
        snapshot = Snapshot(board)
        states = []
        for _ in range(2):
            driven = Guest(board, Program(b""))
            driven.plug_in()
            driven.start(ALL_ONES)
            pages = (KEPT_PFNS[0] * 4096, 4096, WRITE)
            driven.add(INFLATE, [pages], False)
            driven.kick()
            driven.serve_all()
            states.append(
                (list(board.tracer.events), board.device.status, list(board.msi.triggered))
            )
            snapshot.restore()
            assert board.function.bar_gpa(0) is None
            assert board.device.status == 0
            assert board.tracer.events == []
        assert states[0] == states[1]
