# SPDX-License-Identifier: Apache-2.0
"""Each rule of VIRTIO 1.2, 2.7 that the device's side of a split queue enforces, one by one."""

from __future__ import annotations

from collections.abc import Callable
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

import pytest

from devices.testing.driver_queue import NEXT, NO_INTERRUPT, NO_NOTIFY, WRITE, DriverQueue
from devices.testing.ram import guest_memory
from pyvmm_native.memory import GuestMemory
from pyvmm_native.ring import Chain, RingError, SplitQueue
from tests.native.raw_chains import RAM_BYTES, offer

MAP_NORESERVE = 0x4000  # <asm-generic/mman.h>; the mmap module lacks it in Python 3.11


@pytest.fixture
def driver() -> DriverQueue:
    return DriverQueue(guest_memory(RAM_BYTES), 8, indirect=True)


# Laying out a queue (2.7).


@pytest.mark.conformance("2.7-1")
@pytest.mark.parametrize("size", [0, -1, 3, 6, 32767, 65536, 1 << 40])
def test_the_size_must_be_a_power_of_two_up_to_32768(size: int) -> None:
    with pytest.raises(RingError, match="queue size"):
        SplitQueue(guest_memory(1 << 20), size, 0, 0, 0)


@pytest.mark.conformance("2.7-1")
@pytest.mark.parametrize(
    ("areas", "name"),
    [
        ((8, 4096, 8192), "descriptor table"),
        ((0, 4097, 8192), "available ring"),
        ((0, 4096, 8194), "used ring"),
    ],
)
def test_areas_must_be_aligned(areas: tuple[int, int, int], name: str) -> None:
    with pytest.raises(RingError, match=f"{name}.*aligned"):
        SplitQueue(guest_memory(RAM_BYTES), 8, *areas)


@pytest.mark.parametrize("gpa", [RAM_BYTES, RAM_BYTES - 16, (1 << 64) - 16, 1 << 64, -16])
@pytest.mark.parametrize("area", [0, 1, 2])
def test_areas_must_be_in_ram(area: int, gpa: int) -> None:
    areas = [0, 4096, 8192]
    areas[area] = gpa
    with pytest.raises(RingError, match="not in guest RAM"):
        SplitQueue(guest_memory(RAM_BYTES), 8, *areas)


def test_areas_may_end_where_ram_ends() -> None:
    memory = guest_memory(4096)
    # 6 + 8 * 8 bytes of used ring; 2-byte alignment would allow less, 4-byte alignment does not.
    SplitQueue(memory, 8, 0, 1024, 4096 - 72)
    with pytest.raises(RingError):
        SplitQueue(memory, 8, 0, 1024, 4096 - 68)


@pytest.mark.conformance("2.7-1")
def test_the_largest_queue_works() -> None:
    driver = DriverQueue(guest_memory(1 << 21), 32768, indirect=True)
    queue = driver.device_queue()
    driver.add([b"x"] * 300, [1] * 32468)
    chain = queue.pop(300)
    assert chain is not None
    assert (chain.readable, chain.writable_bytes) == (b"x" * 300, 32468)


# Indices (2.7.6).


def test_more_available_than_the_queue_holds_is_an_error(driver: DriverQueue) -> None:
    queue = driver.device_queue()
    driver.set_avail_idx(9)
    for _ in range(2):
        with pytest.raises(RingError, match="9 buffers"):
            queue.pop(0)
    with pytest.raises(RingError):
        _ = queue.pending
    driver.set_avail_idx(8)
    assert queue.pending == 8


def test_a_head_outside_the_table_is_an_error(driver: DriverQueue) -> None:
    queue = driver.device_queue()
    driver.set_avail_ring(0, 8)
    driver.set_avail_idx(1)
    with pytest.raises(RingError, match="chain at descriptor 8: index outside"):
        queue.pop(0)
    assert queue.next_avail == 0


# Chains (2.7.4.2, 2.7.5).


def test_a_next_outside_the_table_is_an_error(driver: DriverQueue) -> None:
    with pytest.raises(RingError, match="index outside"):
        offer(driver, (0, 4, NEXT, 8)).pop(100)


def test_loops_are_an_error(driver: DriverQueue) -> None:
    with pytest.raises(RingError, match="loop"):
        offer(driver, (0, 4, NEXT, 1), (0, 4, NEXT, 0)).pop(100)


def test_readable_after_writable_is_an_error(driver: DriverQueue) -> None:
    with pytest.raises(RingError, match="readable element after"):
        offer(driver, (0, 4, WRITE | NEXT, 1), (0, 4, 0, 0)).pop(100)


@pytest.mark.parametrize("flags", [0, WRITE])
@pytest.mark.parametrize(
    ("gpa", "length"),
    [(RAM_BYTES, 1), (RAM_BYTES - 4, 5), ((1 << 64) - 1, 1), ((1 << 64) - 4, 8), (0, 0xFFFFFFFF)],
)
def test_an_element_outside_ram_is_an_error(
    driver: DriverQueue, gpa: int, length: int, flags: int
) -> None:
    with pytest.raises(RingError, match="outside guest RAM"):
        offer(driver, (gpa, length, flags, 0)).pop(100)


def test_an_empty_element_may_have_any_address(driver: DriverQueue) -> None:
    queue = offer(
        driver, (1 << 63, 0, NEXT, 1), (driver.place(b"data"), 4, NEXT, 2), (0, 0, WRITE, 0)
    )
    chain = queue.pop(100)
    assert chain is not None
    assert (chain.readable, chain.writable_bytes) == (b"data", 0)


def test_writable_segments_are_listed_in_order(driver: DriverQueue) -> None:
    queue = driver.device_queue()
    driver.add([b"a"], writable_segments=[(4096, 8192), (1 << 63, 0), (100, 1)], indirect=True)
    driver.add([b"a"])
    chain, readable = queue.pop(1), queue.pop(1)
    assert chain is not None
    assert readable is not None
    driver.set_desc(0, 0, 0)  # later writes by the driver have no effect
    assert chain.writable_segments == ((4096, 8192), (100, 1))
    assert readable.writable_segments == ()


@pytest.mark.parametrize("event_idx", [False, True])
def test_pages_that_the_device_writes_are_logged_as_dirty(event_idx: bool) -> None:
    driver = DriverQueue(guest_memory(RAM_BYTES), 256, event_idx=event_idx)
    queue = driver.device_queue()
    memory = queue.memory
    driver.add(writable_segments=[(8 * 4096 - 1, 2)])
    memory.log_dirty_pages(True)

    def changes(*acts: Callable[[], object]) -> set[int]:
        """Return the pages in the dirty log after `acts`."""
        before = memory.read(0, RAM_BYTES)
        memory.take_dirty_pages()
        for act in acts:
            act()
        after = memory.read(0, RAM_BYTES)
        [(_, bitmap)] = memory.take_dirty_pages()
        changed = {i // 4096 for i in range(RAM_BYTES) if before[i] != after[i]}
        assert {page for page in changed if not bitmap[page >> 3] >> (page & 7) & 1} == set()
        return changed

    chain = queue.pop(0)
    assert chain is not None
    assert changes(queue.disable_notifications) or event_idx
    assert changes(queue.enable_notifications)
    assert changes(lambda: chain.write(b"ab")) == {7, 8}
    assert changes(lambda: queue.push(chain, 2))


def test_unknown_flags_are_ignored(driver: DriverQueue) -> None:
    chain = offer(driver, (driver.place(b"data"), 4, 0xFFF8, 7)).pop(100)
    assert chain is not None
    assert chain.readable == b"data"


def test_an_element_may_cross_adjacent_regions() -> None:
    memory = GuestMemory([(0, bytearray(8192)), (8192, bytearray(8192))])
    driver = DriverQueue(memory, 8)
    memory.write(8190, b"abcd")
    queue = offer(driver, (8190, 4, NEXT, 1), (8191, 3, WRITE, 0))
    chain = queue.pop(100)
    assert chain is not None
    assert chain.readable == b"abcd"
    chain.write(b"xyz")
    assert memory.read(8190, 4) == b"axyz"


def test_a_chain_of_more_than_4_gib_is_an_error() -> None:
    area = mmap(-1, 1 << 32, flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
    driver = DriverQueue(GuestMemory([(0, area)]), 8)
    half = 1 << 31
    queue = offer(driver, (0, half, NEXT, 1), (0, half, NEXT, 2), (0, 0, 0, 0))
    chain = queue.pop(4096)
    assert chain is not None
    assert (chain.readable, chain.readable_bytes) == (b"", 1 << 32)
    driver.set_desc(2, 0, 1, WRITE)
    with pytest.raises(RingError, match=r"2\^32"):
        driver.device_queue().pop(4096)


def test_a_chain_over_the_limit_is_popped_unread(driver: DriverQueue) -> None:
    queue = driver.device_queue()
    head = driver.add([b"12345"], [4])
    chain = queue.pop(4)
    assert chain is not None
    assert (chain.readable, chain.readable_bytes, chain.writable_bytes) == (b"", 5, 4)
    queue.push(chain)
    assert driver.take_used() == [(head, 0, b"")]


# Returning buffers (2.7.8) and notifications (2.7.7, 2.7.10).


def test_push_refuses_invalid_arguments(driver: DriverQueue) -> None:
    queue = driver.device_queue()
    driver.add([], [4])
    chain = queue.pop(0)
    assert chain is not None
    with pytest.raises(ValueError, match="5 bytes for 4"):
        chain.write(b"12345")
    with pytest.raises(ValueError, match="5 bytes written"):
        queue.push(chain, 5)
    with pytest.raises(ValueError, match="descriptor 8"):
        queue.push(8)
    with pytest.raises(OverflowError):
        queue.push(0, 1 << 32)
    with pytest.raises(TypeError):
        Chain()
    assert driver.used_idx == 0


def test_the_used_ring_wraps() -> None:
    driver = DriverQueue(guest_memory(RAM_BYTES), 2, start_index=65535)
    queue = driver.device_queue()
    for expected in (0, 1, 2):
        driver.add([b"x"])
        queue.push(queue.pop(1) or -1)
        assert (driver.used_idx, queue.next_used, queue.next_avail) == (expected,) * 3
        assert len(driver.take_used()) == 1


@pytest.mark.conformance("2.7.7.2-2", "2.7.7.2-3")
def test_interrupts_are_suppressed_by_the_flag(driver: DriverQueue) -> None:
    queue = driver.device_queue()
    assert not queue.should_interrupt()
    queue.push(0)
    assert queue.should_interrupt()
    assert not queue.should_interrupt()
    queue.push(0)
    driver.set_avail_flags(NO_INTERRUPT)
    assert not queue.should_interrupt()
    driver.set_avail_flags(0xFFFE)
    assert not queue.should_interrupt(), "that interrupt was already requested"


def test_more_buffers_than_an_index_counts_interrupt() -> None:
    driver = DriverQueue(guest_memory(RAM_BYTES), 8, event_idx=True)
    queue = driver.device_queue()
    driver.set_used_event(5)
    for _ in range(65536 + 3):
        queue.push(0)
    assert queue.should_interrupt()


def test_a_restored_queue_interrupts_once() -> None:
    driver = DriverQueue(guest_memory(RAM_BYTES), 8, event_idx=True)
    queue = driver.device_queue()
    queue.next_used = 100
    driver.set_used_event(7)
    assert queue.should_interrupt()
    assert not queue.should_interrupt()


def test_a_restored_buffer_ignores_later_writes_to_its_descriptors(driver: DriverQueue) -> None:
    driver.add(readable=[b"asked"], writable=[4, 12])
    old = driver.device_queue()
    popped = old.pop(64)
    assert popped is not None
    driver.set_desc(popped.head, 1 << 40, 16, WRITE)
    new = driver.device_queue()
    new.next_avail = old.next_avail
    restored = new.restore_in_flight(popped.head, popped.writable_segments)
    assert (restored.head, restored.writable_bytes) == (popped.head, popped.writable_bytes)
    assert restored.writable_segments == popped.writable_segments
    assert (restored.readable, restored.readable_bytes) == (b"", 0)
    assert (new.next_avail, new.pending) == (1, 0)
    new.push(restored, restored.write(b"the bytes"))
    assert driver.take_used() == [(popped.head, 9, b"the bytes")]


@pytest.mark.parametrize(
    ("head", "segments", "why"),
    [
        (8, [], "descriptor 8 in a queue of 8"),
        (0, [(RAM_BYTES, 1)], "outside guest RAM"),
        (0, [(0, RAM_BYTES + 1)], "outside guest RAM"),
        (0, [((1 << 64) - 1, (1 << 32) - 1)], "outside guest RAM"),
        (0, [(0, 1)] * 9, "longer than the queue"),
    ],
)
def test_an_impossible_buffer_is_not_restored(
    driver: DriverQueue, head: int, segments: list[tuple[int, int]], why: str
) -> None:
    with pytest.raises(RingError, match=why):
        driver.device_queue().restore_in_flight(head, segments)


@pytest.mark.conformance("2.7.10.2-1", "2.7.10.2-2")
def test_notifications_are_suppressed_by_the_flag(driver: DriverQueue) -> None:
    queue = driver.device_queue()
    queue.disable_notifications()
    assert driver.used_flags == NO_NOTIFY
    driver.add([b"x"])
    assert not driver.should_notify()
    assert queue.enable_notifications()
    assert driver.used_flags == 0
    queue.pop(1)
    assert not queue.enable_notifications()


@pytest.mark.conformance("2.7.10.2-3", "2.7.10.2-4")
def test_notifications_are_suppressed_by_avail_event() -> None:
    driver = DriverQueue(guest_memory(RAM_BYTES), 8, event_idx=True)
    queue = driver.device_queue()
    for _ in range(3):
        driver.add([b"x"])
        queue.pop(1)
    queue.disable_notifications()
    assert not queue.enable_notifications()
    # 2.7.10.1: with EVENT_IDX the flags stay 0.
    assert (driver.avail_event, driver.used_flags) == (3, 0)


def test_enabling_notifications_leaves_a_broken_index_to_pop(driver: DriverQueue) -> None:
    queue = driver.device_queue()
    driver.set_avail_idx(1000)
    assert queue.enable_notifications()


def test_repr_and_attributes_describe_the_queue(driver: DriverQueue) -> None:
    queue = driver.device_queue()
    assert (queue.size, queue.indirect, queue.event_idx) == (8, True, False)
    assert queue.memory is driver.memory
    driver.add([b"abc"], [2])
    assert repr(queue.pop(3)) == "<Chain head=0 readable_bytes=3 writable_bytes=2>"
