# SPDX-License-Identifier: Apache-2.0
"""Buffers of a stream: popped, returned and read several at once."""

from __future__ import annotations

import os
import socket
from mmap import mmap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.testing.driver_queue import DriverQueue
from devices.testing.ram import guest_memory
from pyvmm_native.chain_reader import ChainReader
from pyvmm_native.memory import GuestMemory
from pyvmm_native.ring import Chain, RingError, SplitQueue
from tests.native.raw_chains import RAM_BYTES

ALL = 1 << 20


def queue_with(*buffers: bytes) -> tuple[DriverQueue, SplitQueue]:
    driver = DriverQueue(guest_memory(RAM_BYTES), 16, indirect=True, event_idx=True)
    queue = driver.device_queue()
    for data in buffers:
        driver.add([data])
    return driver, queue


def contents(chains: list[Chain]) -> bytes:
    return ChainReader(chains).read(ALL)


@pytest.mark.parametrize(
    ("max_buffers", "max_bytes", "expected"),
    [(16, ALL, 4), (3, ALL, 3), (16, 5, 2), (16, 6, 3), (16, 1, 0), (0, ALL, 0)],
)
def test_a_batch_keeps_both_limits(max_buffers: int, max_bytes: int, expected: int) -> None:
    _, queue = queue_with(b"ab", b"cde", b"f", b"g")
    chains = queue.pop_batch(max_buffers, max_bytes)
    assert len(chains) == expected
    assert contents(chains) == b"".join([b"ab", b"cde", b"f", b"g"][:expected])
    assert all(chain.readable == b"" for chain in chains)
    assert queue.pending == 4 - expected


def test_a_batch_ends_before_a_writable_buffer() -> None:
    driver, queue = queue_with(b"first")
    driver.add([b"both"], [8])
    driver.add([b"last"])
    assert contents(queue.pop_batch(16, ALL)) == b"first"
    assert queue.pop_batch(16, ALL) == []
    chain = queue.pop(ALL)
    assert chain is not None
    assert chain.writable_bytes == 8
    assert contents(queue.pop_batch(16, ALL)) == b"last"


def test_a_batch_ends_before_a_malformed_buffer_which_pop_reports() -> None:
    driver, queue = queue_with(b"first", b"second")
    driver.set_avail_ring(1, 99)
    assert contents(queue.pop_batch(16, ALL)) == b"first"
    assert queue.pop_batch(16, ALL) == []
    with pytest.raises(RingError, match="descriptor 99"):
        queue.pop(ALL)


def test_a_malformed_available_index_is_an_error_of_a_batch() -> None:
    driver, queue = queue_with()
    driver.set_avail_idx(17)
    with pytest.raises(RingError, match="17 buffers"):
        queue.pop_batch(16, ALL)


def test_buffers_are_returned_at_once_and_interrupt_once() -> None:
    driver, queue = queue_with(b"a", b"b", b"c")
    queue.push_batch(queue.pop_batch(16, ALL))
    assert queue.should_interrupt()
    assert not queue.should_interrupt()
    assert [used.length for used in driver.take_used()] == [0, 0, 0]


def test_rewound_buffers_are_popped_again() -> None:
    _, queue = queue_with(b"a", b"b", b"c")
    chains = queue.pop_batch(16, ALL)
    queue.push_batch(chains[:1])
    for count in (3, -1):
        with pytest.raises(ValueError, match="more than those in flight"):
            queue.rewind(count)
    queue.rewind(2)
    assert contents(queue.pop_batch(16, ALL)) == b"bc"
    queue.rewind(0)
    assert queue.pending == 0


def test_a_rewind_crosses_the_end_of_the_index() -> None:
    driver, queue = queue_with()
    driver.set_avail_idx(0xFFFF)
    queue.next_avail = queue.next_used = 0xFFFF
    driver.set_avail_ring(0xFFFF % 16, 0)
    driver.set_avail_ring(0, 1)
    for head in (0, 1):
        driver.set_desc(head, driver.place(b"%d" % head), 1)
    driver.set_avail_idx(1)
    assert contents(queue.pop_batch(16, ALL)) == b"01"
    queue.rewind(2)
    assert queue.next_avail == 0xFFFF
    assert contents(queue.pop_batch(16, ALL)) == b"01"


@given(
    sizes=st.lists(st.lists(st.integers(0, 300), min_size=1, max_size=4), max_size=6),
    skip=st.integers(0, 1500),
    limit=st.integers(0, 1500),
)
def test_a_reader_returns_the_contents_in_order(
    sizes: list[list[int]], skip: int, limit: int
) -> None:
    driver, queue = queue_with()
    expected = b""
    for lengths in sizes:
        buffer = [os.urandom(length) for length in lengths]
        expected += b"".join(buffer)
        driver.add(buffer, indirect=True)
    reader = ChainReader(queue.pop_batch(16, ALL), skip)
    expected = expected[skip:]
    assert len(reader) == len(expected)
    assert reader.read(limit) == expected[:limit]
    fd = os.memfd_create("written")
    try:
        assert reader.write_to(fd) == len(expected)
        assert os.pread(fd, ALL, 0) == expected
    finally:
        os.close(fd)


def test_an_element_may_lie_in_two_regions() -> None:
    memory = GuestMemory([(0, mmap(-1, 1 << 16)), (1 << 16, mmap(-1, 1 << 16))])
    memory.write((1 << 16) - 3, b"across")
    driver = DriverQueue(memory, 16)
    queue = driver.device_queue()
    driver.set_desc(0, (1 << 16) - 3, 6)
    driver.set_avail_ring(0, 0)
    driver.set_avail_idx(1)
    reader = ChainReader(queue.pop_batch(1, ALL), 1)
    assert reader.read(ALL) == b"cross"
    assert reader.read(4) == b"cros"


def test_more_ranges_than_one_call_takes_are_written() -> None:
    driver = DriverQueue(guest_memory(1 << 21), 256, indirect=True)
    queue = driver.device_queue()
    for number in range(10):
        driver.add([b"%d" % number] * 256, indirect=True)
    fd = os.memfd_create("written")
    try:
        assert ChainReader(queue.pop_batch(16, ALL)).write_to(fd) == 2560
        assert os.pread(fd, ALL, 0) == b"".join(b"%d" % number * 256 for number in range(10))
    finally:
        os.close(fd)


def test_a_full_descriptor_takes_a_part_and_then_nothing() -> None:
    driver = DriverQueue(guest_memory(1 << 22), 16)
    queue = driver.device_queue()
    driver.add([bytes(1 << 21)])
    reader = ChainReader(queue.pop_batch(1, 1 << 22))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        taken = reader.write_to(ours.fileno())
        assert 0 < taken < len(reader)
        while reader.write_to(ours.fileno()):
            pass
        theirs.close()
        with pytest.raises(BrokenPipeError):
            reader.write_to(ours.fileno())


def test_a_reader_keeps_guest_memory_mapped() -> None:
    ram = mmap(-1, RAM_BYTES)
    driver = DriverQueue(GuestMemory([(0, ram)]), 16)
    queue = driver.device_queue()
    driver.add([b"still there"])
    reader = ChainReader(queue.pop_batch(1, ALL))
    del driver, queue
    with pytest.raises(BufferError):
        ram.close()
    assert reader.read(ALL) == b"still there"
