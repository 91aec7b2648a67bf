# SPDX-License-Identifier: Apache-2.0
"""SplitQueue: a device pops what a driver writes, and hostile rings are harmless.

Invariant of the hostile tests: `pop` returns a chain or None, or raises RingError, as the oracle
does; it raises nothing else, and nothing outside the ring changes.
"""

from __future__ import annotations

import os
import random
import signal
from mmap import mmap

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from devices.testing.driver_queue import DriverQueue, Used, need_event
from devices.testing.ram import guest_memory
from devices.testing.strategies import buffer_elements
from pyvmm.units import MIB
from pyvmm_native.memory import GuestMemory
from pyvmm_native.ring import RingError, SplitQueue
from tests.native.ring_oracle import MalformedRing, expected_pop

sizes = st.sampled_from([1, 2, 4, 8, 16, 64])
start_indices = st.one_of(st.just(0), st.integers(65400, 65535), st.integers(0, 65535))
buffers = st.tuples(buffer_elements, st.booleans(), st.integers(0, 2))
Buffer = tuple[tuple[list[bytes], list[int]], bool, int]
"""Elements, whether they go into an indirect table, and how many of them stay direct."""


def add(driver: DriverQueue, buffer: Buffer) -> int | None:
    """Make a generated buffer available; None when this queue cannot hold it."""
    (readable, writable), indirect, direct_first = buffer
    elements = len(readable) + len(writable)
    if not elements or elements > driver.size:
        return None
    indirect = indirect and driver.indirect and direct_first < elements
    try:
        return driver.add(readable, writable, indirect=indirect, direct_first=direct_first)
    except IndexError:
        return None


@pytest.mark.conformance("2.6-1", "2.7.8.2-2")
@given(
    size=sizes,
    start=start_indices,
    event_idx=st.booleans(),
    indirect=st.booleans(),
    seed=st.integers(0, 99),
    rounds=st.lists(st.lists(buffers, max_size=6), max_size=6),
    data=st.data(),
)
@settings(deadline=None)
def test_every_buffer_is_returned_with_its_data(
    size: int,
    start: int,
    event_idx: bool,
    indirect: bool,
    seed: int,
    rounds: list[list[Buffer]],
    data: st.DataObject,
) -> None:
    driver = DriverQueue(
        guest_memory(MIB // 4),
        size,
        event_idx=event_idx,
        indirect=indirect,
        start_index=start,
        rng=random.Random(seed),
    )
    queue = driver.device_queue()
    for batch in rounds:
        heads = [(add(driver, buffer), buffer) for buffer in batch]
        added = [(head, buffer) for head, buffer in heads if head is not None]
        assert queue.pending == len(added)
        returned = []
        for head, ((readable, writable), _, _) in added:
            chain = queue.pop(1 << 20)
            assert chain is not None
            assert (chain.head, chain.readable) == (head, b"".join(readable))
            assert chain.readable_bytes == len(chain.readable)
            assert chain.writable_bytes == sum(writable)
            contents = data.draw(st.binary(max_size=chain.writable_bytes))
            assert chain.write(contents) == len(contents)
            queue.push(chain, len(contents))
            returned.append(Used(head, len(contents), contents))
        assert queue.pop(1 << 20) is None
        assert driver.take_used() == returned
    assert driver.free_descriptors == size


@pytest.mark.conformance("2.7.7.2-5", "2.7.7.2-6")
@given(
    size=sizes,
    start=start_indices,
    pushes=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    data=st.data(),
)
def test_an_interrupt_is_due_exactly_when_used_event_is_passed(
    size: int, start: int, pushes: list[int], data: st.DataObject
) -> None:
    driver = DriverQueue(guest_memory(MIB), size, event_idx=True)
    queue = driver.device_queue()
    queue.next_used = start
    queue.should_interrupt()  # the next call reports buffers from before
    for count in pushes:
        event = (queue.next_used + data.draw(st.integers(-3, 45))) % 65536
        new = [(queue.next_used + i) % 65536 for i in range(count)]
        driver.set_used_event(event)
        for _ in range(count):
            queue.push(0)
        assert queue.should_interrupt() == (event in new)
        assert not queue.should_interrupt()


@pytest.mark.conformance("2.7.10.2-4")
@given(start=start_indices, rounds=st.lists(st.integers(0, 8), max_size=8), event_idx=st.booleans())
def test_no_notification_is_missed(start: int, rounds: list[int], event_idx: bool) -> None:
    """A device that always enables notifications before it goes idle never stalls."""
    driver = DriverQueue(guest_memory(MIB), 8, event_idx=event_idx, start_index=start)
    queue = driver.device_queue()
    assert not queue.enable_notifications()
    for count in rounds:
        for _ in range(count):
            driver.add([b"x"])
        assert driver.should_notify() == (count > 0)
        queue.disable_notifications()
        if count:
            queue.push(queue.pop(1) or 0)
            # Some are left over: enabling returns True.
            assert queue.enable_notifications() == (count > 1)
            queue.disable_notifications()
        while chain := queue.pop(1):
            queue.push(chain)
        assert not queue.enable_notifications()
        driver.take_used()


# Two adjacent regions, one apart, and addresses at their edges and beyond.
LOW, HIGH, APART = 4 * 4096, 2 * 4096, 1 << 32
EDGES = [0, 4096, LOW, LOW + HIGH, APART, APART + 4096, 1 << 63, (1 << 64) - 1]
RINGS, TABLES = 2 * 4096, 4096


class HostileDriver(DriverQueue):
    """Writes rings that are nearly valid: a field is hostile with probability `hostility`."""

    def __init__(self, memory: GuestMemory, size: int, seed: int, hostility: float) -> None:
        self.rng = random.Random(seed)
        self.hostility = hostility
        start = self.rng.choice([0, 65533, self.rng.randrange(65536)])
        super().__init__(
            memory,
            size,
            base_gpa=RINGS,
            data_gpa=TABLES,
            indirect=self.rng.random() < 0.8,
            start_index=start,
        )
        for index in range(256):
            self.hostile_desc(index - (RINGS - TABLES) // 16, 16)
        for index in range(size):
            self.hostile_desc(index, size)
            self.set_avail_ring(index, self.pick(self.rng.randrange(size), size))
        self.set_avail_idx(start + self.pick(self.rng.randrange(size + 1), size + 1))

    def pick(self, good: int, *bad: int) -> int:
        if self.rng.random() >= self.hostility:
            return good
        return self.rng.choice([*bad, self.rng.randrange(1 << 16)])

    def hostile_desc(self, index: int, entries: int) -> None:
        kind = self.rng.choice([0, 1, 1, 2, 3, 4])
        gpa = self.pick(
            self.rng.randrange(LOW), *(edge + self.rng.randint(-40, 40) for edge in EDGES)
        )
        length = self.pick(self.rng.randrange(5000), 0, LOW, LOW + HIGH, 1 << 31, 0xFFFFFFFF)
        if kind == 4:
            gpa = self.pick(TABLES + 16 * self.rng.randrange(200), gpa)
            length = self.pick(16 * self.rng.randrange(1, 20), length, 0)
        flags = self.pick(kind, *range(8), kind | 0xFFF8)
        self.set_desc(index, gpa, length, flags, self.pick(self.rng.randrange(entries), entries))


@given(
    size=st.sampled_from([1, 2, 4, 8, 32]),
    seed=st.integers(0, 1 << 32),
    hostility=st.sampled_from([0, 0.01, 0.05, 0.3]),
    limit=st.sampled_from([0, 5000, 100000]),
)
@settings(max_examples=1000, deadline=None)
def test_hostile_rings_are_read_as_the_oracle_reads_them(
    size: int, seed: int, hostility: float, limit: int
) -> None:
    memory = GuestMemory([(0, bytearray(LOW)), (LOW, bytearray(HIGH)), (APART, bytearray(4096))])
    driver = HostileDriver(memory, size, seed, hostility)
    queue = driver.device_queue()
    before = [memory.read(gpa, length) for gpa, length in memory.regions]
    for _ in range(size + 2):
        at = queue.next_avail
        try:
            expected = expected_pop(driver, at, queue.next_used, limit)
        except MalformedRing:
            with pytest.raises(RingError):
                queue.pop(limit)
            assert queue.next_avail == at
            queue.next_avail = (at + 1) % 65536  # continue with the next one
            continue
        chain = queue.pop(limit)
        if expected is None:
            assert chain is None
            break
        assert chain is not None
        assert (chain.head, chain.readable) == (expected.head, expected.readable)
        assert chain.readable_bytes == expected.readable_bytes
        assert chain.writable_bytes == expected.writable_bytes
        assert queue.next_avail == (at + 1) % 65536
    assert [memory.read(gpa, length) for gpa, length in memory.regions] == before


@given(image=st.binary(min_size=512, max_size=512), size=sizes, indirect=st.booleans())
@example(image=b"\xff" * 512, size=8, indirect=True)
def test_any_bytes_can_be_a_ring(image: bytes, size: int, indirect: bool) -> None:
    memory = guest_memory(8192)
    queue = SplitQueue(memory, size, 0, 1024, 2048, indirect=indirect, event_idx=True)
    for gpa in range(0, 4096, 512):
        memory.write(gpa, image)
    for _ in range(4):
        try:
            chain = queue.pop(4096)
        except RingError:
            break
        if chain is None:
            break
        assert len(chain.readable) in (0, chain.readable_bytes)
        chain.write(bytes(min(chain.writable_bytes, 99)))
        queue.push(chain)
        queue.should_interrupt()
        queue.enable_notifications()


def write_hostile_rings(memory: GuestMemory, driver: DriverQueue, seed: int) -> None:
    """Write nearly valid ring contents until killed."""
    rng = random.Random(seed)
    gpas = [0, 64, 4096, 8192, MIB - 64, MIB - 1, MIB, 1 << 63, (1 << 64) - 16]
    while True:
        index = rng.randrange(driver.size)
        driver.set_desc(
            index - rng.choice([0, 256]),
            rng.choice(gpas),
            rng.choice([0, 1, 16, 64, 256, 4096, 1 << 20, 0xFFFFFFFF]),
            rng.choice([0, 1, 1, 2, 3, 4, 4, 5]),
            rng.randrange(driver.size + 1),
        )
        driver.set_avail_ring(index, rng.randrange(driver.size + 1))
        driver.set_avail_idx(rng.choice([driver.used_idx + 1, rng.randrange(65536)]))


@pytest.mark.parametrize("size", [4, 256])
def test_a_driver_that_writes_concurrently_causes_only_ring_errors(size: int) -> None:
    """A second process writes the ring at the same time, through shared memory."""
    memory = GuestMemory([(0, mmap(-1, MIB))])
    driver = DriverQueue(memory, size, base_gpa=8192, indirect=True, event_idx=True)
    queue = driver.device_queue()
    child = os.fork()
    if child == 0:
        try:
            write_hostile_rings(memory, driver, size)
        finally:
            os._exit(1)
    outcomes = {"chain": 0, "broken": 0}
    try:
        while min(outcomes["chain"], outcomes["broken"]) < 300:
            try:
                chain = queue.pop(1 << 21)
            except RingError:
                outcomes["broken"] += 1
                queue.next_avail = (driver.avail_idx - 1) % 65536
                continue
            if chain is None:
                continue
            outcomes["chain"] += 1
            assert len(chain.readable) == chain.readable_bytes <= 1 << 21 or not chain.readable
            chain.write(bytes(min(chain.writable_bytes, 64)))
            queue.push(chain, min(chain.writable_bytes, 64))
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, "the writing process died by itself"


def test_need_event_follows_the_specification() -> None:
    """The formula of 2.7.7.2 against counting the indices that were passed."""
    rng = random.Random(1)
    for _ in range(2000):
        old, count = rng.randrange(65536), rng.randrange(300)
        event = (old + rng.randrange(-5, 305)) % 65536
        passed = {(old + i) % 65536 for i in range(count)}
        assert need_event(event, (old + count) % 65536, old) == (event in passed)
