# SPDX-License-Identifier: Apache-2.0
"""Guests made up by hypothesis, as programs and as accesses with a shape.

Invariant of all: nothing but the policy's errors leaves the device, and what
`tests.fuzz.checked_board` checks at every step holds: bounded work, no page discarded that a valid
request did not name, every buffer returned, kept by right, or the device in NEEDS_RESET, and every
other page intact. Afterwards an honest driver can start the device.
"""

from __future__ import annotations

import os
import random
import signal
from mmap import mmap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.balloon.device import BalloonDevice
from devices.balloon.dialects import BITMAP, STANDARD, Dialect, Role
from devices.testing.balloon.driver import INFLATE
from devices.testing.balloon.requests import bitmap_request, pfn_array
from devices.testing.board import Board
from devices.testing.driver import VirtioDriver
from devices.testing.recorders import RecordingTracer
from pyvmm.units import MIB
from pyvmm_native.memory import GuestMemory
from pyvmm_native.ring import Chain
from pyvmm_native.runs import PageRuns
from tests.fuzz import guest_program, page_oracle
from tests.fuzz.careless_driver import ALL_ONES
from tests.fuzz.checked_board import CheckedBoard
from tests.fuzz.guest_program import INSTRUCTIONS, PATTERN_PFNS, Guest, Program

instructions = st.builds(
    lambda opcode, operands: bytes([opcode]) + operands,
    st.integers(0, len(INSTRUCTIONS) - 1),
    st.binary(max_size=12),
)
programs = st.builds(
    lambda head, body: head + b"".join(body),
    st.binary(min_size=2, max_size=2),
    st.lists(instructions, max_size=40),
)


@settings(max_examples=600, deadline=None)
@given(programs)
def test_no_program_does_harm(program: bytes) -> None:
    guest_program.run(program)


@settings(max_examples=200, deadline=None)
@given(program=programs, dialect=st.sampled_from([STANDARD, BITMAP]))
def test_an_honest_driver_can_follow(program: bytes, dialect: Dialect) -> None:
    board = CheckedBoard(dialect, dialect.features.known)
    guest = Guest(board, Program(program))
    guest.place_bars()
    guest.start(ALL_ONES)
    guest.run()
    board.check_idle()
    guest.place_bars()
    guest.start(ALL_ONES)
    before = board.checked_balloon.counters.inflate.pages
    page = [PATTERN_PFNS[3]]
    parts = [pfn_array(page)] if dialect is STANDARD else bitmap_request(page)
    guest.add(INFLATE, [(guest.place(part), len(part), 0) for part in parts], False)
    guest.serve_all()
    assert board.checked_balloon.counters.inflate.pages == before + 1
    assert PATTERN_PFNS[3] in board.ram.touched
    board.check_idle()


# A driver that changes ring, requests and everything else from another process, at the same time.

RAM_BYTES, LIVE_GPA = 32 * MIB, 30 * MIB


class SharedRam:
    """GuestRam that another process can write; discards are judged and not carried out."""

    host_page_pages = 1

    def __init__(self) -> None:
        self.map = mmap(-1, RAM_BYTES)
        self.memory = GuestMemory([(0, self.map)])
        self.pages = PageRuns([(0, RAM_BYTES // 4096)])
        self.all_pages = page_oracle.pages_of_regions([(0, RAM_BYTES)])
        self.allowed: page_oracle.Pages = frozenset()

    def discard(self, runs: PageRuns) -> int:
        pages = {pfn for start, count in runs for pfn in range(start, start + count)}
        assert pages <= self.allowed
        return 4096 * len(pages)


class JudgedBalloon(BalloonDevice):
    """Knows from the copy of the request, not from memory, what may be discarded."""

    ram: SharedRam
    goods = bads = 0

    def serve(self, queue: int, chain: Chain) -> int | None:
        role, named = self.roles.get(queue), None
        if role is Role.INFLATE:
            decode = (
                page_oracle.named_by_pfns
                if self.dialect is STANDARD
                else page_oracle.named_by_bitmap
            )
            named = decode(chain.readable, self.ram.all_pages)
        elif role is Role.REPORTING:
            named = page_oracle.wholly_inside(chain.writable_segments)
        self.ram.allowed = named or frozenset()
        if named:
            self.goods += 1
        else:
            self.bads += 1
        return super().serve(queue, chain)


def scribble(driver: VirtioDriver, dialect: Dialect, seed: int) -> None:
    """Write nearly valid rings and requests until killed."""
    rng, memory = random.Random(seed), driver.memory
    rings = list(driver.queues.values())
    while True:
        ring = rng.choice(rings)
        pfns = sorted(rng.sample(range(1200, 1264), rng.randint(1, 4)))
        whole = pfn_array(pfns) if dialect is STANDARD else b"".join(bitmap_request(pfns))
        gpa = LIVE_GPA + rng.randrange(8) * 512
        memory.write(gpa, whole if rng.random() < 0.9 else rng.randbytes(40))
        index = rng.randrange(ring.size)
        flags = rng.choice([0, 0, 0, 0, 1, 2, 2, 4])
        length = rng.choice([len(whole)] * 6 + [rng.randrange(80), 4096])
        target = gpa if rng.random() < 0.9 else rng.choice([0, RAM_BYTES - 8, 1 << 63])
        ring.set_desc(index, target, length, flags, rng.randrange(ring.size))
        ring.set_avail_ring(rng.randrange(ring.size), rng.randrange(ring.size))
        ring.set_avail_idx(ring.used_idx + rng.randrange(3) if rng.random() < 0.99 else 9999)


@pytest.mark.parametrize("dialect", [STANDARD, BITMAP], ids=lambda each: each.name)
def test_a_driver_that_writes_meanwhile(dialect: Dialect) -> None:
    ram, trace = SharedRam(), RecordingTracer()
    balloon = JudgedBalloon(dialect, ram, trace, offered=dialect.features.known)
    balloon.ram = ram
    driver = VirtioDriver(Board(balloon, trace), rings_gpa=0)
    restart(driver)
    child = os.fork()
    if child == 0:
        try:
            scribble(driver, dialect, 1)
        finally:
            os._exit(1)
    broken = 0
    try:
        while min(balloon.goods, balloon.bads, broken) < 40:
            for queue in driver.queues:
                driver.board.transport.serve_queue(queue)
            if not balloon.running:
                broken += 1
                restart(driver)
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, "the scribbler died of its own"


def restart(driver: VirtioDriver) -> None:
    """As a driver does, with rings where they were."""
    driver.probe()
    driver.negotiate()
    for index in range(driver.read_common("num_queues")):
        driver.write_common("queue_select", index)
        if driver.read_common("queue_size"):
            driver.set_up_queue(index, size=8)
    driver.write_common("device_status", 15)
