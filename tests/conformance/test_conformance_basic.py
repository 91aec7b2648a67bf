# SPDX-License-Identifier: Apache-2.0
"""Requirements of VIRTIO 1.2 on any device (2, 3 and 6) that no other test covers."""

import ctypes
import os
import signal
from itertools import combinations, pairwise
from mmap import PROT_READ, mmap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.balloon import features
from devices.balloon.dialects import STANDARD
from devices.testing.balloon.driver import DEFLATE, INFLATE, STATS, BalloonDriver
from devices.testing.balloon.requests import pfn_array
from devices.testing.driver import (
    ACKNOWLEDGE,
    DRIVER,
    DRIVER_OK,
    EVENT_IDX,
    FEATURES_OK,
    INDIRECT_DESC,
    NEEDS_RESET,
    NO_VECTOR,
    RING_RESET,
    VERSION_1,
)
from devices.testing.driver_queue import (
    INDIRECT,
    NEXT,
    NO_INTERRUPT,
    WRITE,
    DriverQueue,
    chain_table,
)
from devices.testing.ram import guest_memory
from pyvmm_native import PAGE_BYTES
from pyvmm_native.memory import GuestMemory
from pyvmm_native.runs import PageRuns

EVERYTHING = features.STANDARD.known


def offering_everything() -> BalloonDriver:
    return BalloonDriver(STANDARD, offered=EVERYTHING).probe()


# Status, features, reset.


@pytest.mark.conformance("2.1-1")
def test_the_initial_status_is_0() -> None:
    assert BalloonDriver(STANDARD).probe().status == 0


@pytest.mark.conformance("2.1.2-1")
@pytest.mark.parametrize("msix", [False, True])
def test_nothing_happens_before_driver_ok(msix: bool) -> None:
    driver = BalloonDriver(STANDARD).probe()
    board = driver.board
    if msix:
        driver.enable_msix()
    driver.negotiate()
    queue = driver.set_up_queue(INFLATE, vector=1 if msix else NO_VECTOR)
    queue.add([pfn_array([1])])
    for _ in range(2):
        driver.notify(INFLATE)
        board.notifiers.notify(INFLATE)
        board.serve()
        board.transport.serve_queue(INFLATE)
    assert queue.used_idx == 0
    assert board.ram.discarded == []
    assert board.msi.triggered == []
    assert driver.read_isr() == 0
    driver.add_status(DRIVER_OK)
    board.serve()
    assert queue.used_idx == 1
    assert driver.read_isr() == (0 if msix else 1)


@pytest.mark.conformance("2.2.2-1", "2.2.2-4", "6.2-8")
def test_offered_features_are_the_balloons_and_depend_on_no_other() -> None:
    # 5.5.3 and 6: none of these bits is described as depending on another one.
    balloon = 0b111111
    independent = balloon | INDIRECT_DESC | EVENT_IDX | VERSION_1 | RING_RESET
    assert offering_everything().read_device_features() & ~independent == 0


@pytest.mark.conformance("2.2.2-2", "2.2.2-5", "6.2-1")
def test_every_subset_of_the_features_is_accepted_also_after_a_reset() -> None:
    driver = offering_everything()
    optional = [
        1 << bit for bit in range(64) if (driver.read_device_features() & ~VERSION_1) >> bit & 1
    ]
    assert len(optional) >= 5
    for count in range(len(optional) + 1):
        for chosen in combinations(optional, count):
            for _ in range(2):
                driver.negotiate(VERSION_1 | sum(chosen))
                assert driver.features == VERSION_1 | sum(chosen)


@pytest.mark.conformance("2.4.1-2", "3.3-1")
def test_a_reset_device_sends_no_notification_and_accesses_no_queue() -> None:
    driver = BalloonDriver(STANDARD).start()
    board = driver.board
    assert driver.send(STATS, [b""]) == [], "kept by the device"
    queues = dict(driver.queues)
    # Masked, so that messages are pending when the device is reset.
    entry = driver.bars[2] + 12
    for vector in range(driver.msix_vectors):
        board.mmio.write(entry + 16 * vector, 4, 1)
    driver.send(INFLATE, [pfn_array([1])])
    board.balloon.set_target(5)
    assert board.msi.triggered == []
    queues[INFLATE].add([pfn_array([2])])
    queues[DEFLATE].add([pfn_array([3])])
    driver.reset()
    rings = [board.ram.memory.read(queue.desc_gpa, PAGE_BYTES) for queue in queues.values()]
    for vector in range(driver.msix_vectors):
        board.mmio.write(entry + 16 * vector, 4, 0)
    for index in queues:
        driver.notify(index)
        board.notifiers.notify(index)
    board.serve()
    board.balloon.request_stats()
    board.balloon.set_target(6)
    assert board.msi.triggered == []
    assert board.line.level is False
    assert len(board.ram.discarded) == 1
    after = [board.ram.memory.read(queue.desc_gpa, PAGE_BYTES) for queue in queues.values()]
    assert after == rings


# Configuration space.


@pytest.mark.conformance("2.5.2-1", "5.5.4-1")
def test_every_field_can_be_read_before_features_ok() -> None:
    driver = offering_everything()
    driver.board.balloon.set_target(0x1234)
    fields = list(driver.board.device.config)
    for status in (0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER):
        driver.write_common("device_status", status)
        assert driver.status & FEATURES_OK == 0
        values = {each.name: driver.read_config(each.offset, each.size) for each in fields}
        assert values.pop("num_pages") == 0x1234
        assert values.pop("actual") == 0
        assert set(values.values()) <= {0}, "nothing was hinted or poisoned"


@pytest.mark.conformance("2.5-2", "4.1.4.3.1-6")
@pytest.mark.parametrize("change", ["reset", "write"])
def test_the_config_generation_changes_with_the_drivers_writes(change: str) -> None:
    driver = BalloonDriver(STANDARD, offered=0).start()
    driver.write_config(4, 4, 10)
    assert driver.read_config(4) == 10
    before = driver.read_common("config_generation")
    if change == "reset":
        driver.reset()
    else:
        driver.write_config(4, 4, 0)
    assert driver.read_config(4) == 0
    assert driver.read_common("config_generation") != before


# Rings.


@pytest.mark.conformance("2.7.4.1-1")
@settings(max_examples=60, deadline=None)
@given(
    pfns=st.lists(st.integers(0, 4000), min_size=1, max_size=40, unique=True),
    cuts=st.lists(st.integers(0, 160), max_size=30),
    indirect=st.booleans(),
    direct_first=st.integers(0, 4),
)
def test_message_framing_has_no_meaning(
    pfns: list[int], cuts: list[int], indirect: bool, direct_first: int
) -> None:
    """A request means the same however it is split into descriptors, some of them empty."""
    driver = BalloonDriver(STANDARD).start()
    whole = pfn_array(pfns)
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    pieces = [whole[start:end] for start, end in pairwise(edges)]
    queue = driver.queues[INFLATE]
    queue.add(pieces, indirect=indirect, direct_first=min(direct_first, len(pieces) - 1))
    driver.notify(INFLATE)
    driver.board.serve()
    assert [used.length for used in queue.take_used()] == [0]
    assert driver.board.ram.discarded == [PageRuns((pfn, 1) for pfn in sorted(pfns))]


@pytest.mark.conformance("2.7.4.1-2")
def test_a_chain_may_have_queue_size_descriptors() -> None:
    driver = BalloonDriver(STANDARD).start()
    whole = pfn_array(range(32))
    assert len(driver.send(INFLATE, [whole[i : i + 1] for i in range(128)])) == 1
    assert driver.board.balloon.counters.inflate.pages == 32


@pytest.mark.conformance("2.7.5.1-1")
@pytest.mark.parametrize("queue", [INFLATE, DEFLATE, STATS])
def test_device_readable_buffers_are_not_written(queue: int) -> None:
    driver = BalloonDriver(STANDARD).start()
    contents = bytes(range(200))
    gpa = driver.queues[queue].data_gpa
    driver.send(queue, [contents])
    assert driver.memory.read(gpa, 200) == contents


@pytest.mark.conformance("2.7.5.1-2")
@pytest.mark.parametrize("queue", [INFLATE, DEFLATE])
def test_device_writable_buffers_are_not_read(queue: int) -> None:
    driver = BalloonDriver(STANDARD).start()
    ring = driver.queues[queue]
    ring.set_desc(0, ring.place(pfn_array([7])), 4, WRITE)
    ring.set_avail_ring(0, 0)
    ring.set_avail_idx(1)
    driver.notify(queue)
    driver.board.serve()
    assert ring.used_idx == 1
    counters = driver.board.balloon.counters
    assert counters.inflate.pages + counters.deflate.pages == 0
    assert driver.board.ram.discarded == []


@pytest.mark.conformance("2.7.5.3.2-1", "2.7.5.3.2-2")
@pytest.mark.parametrize("direct", [0, 1, 2])
def test_an_indirect_table_may_follow_direct_descriptors_with_any_write_flag(direct: int) -> None:
    driver = BalloonDriver(STANDARD).start()
    ring = driver.queues[INFLATE]
    for index in range(direct):
        ring.set_desc(index, ring.place(pfn_array([index])), 4, NEXT, index + 1)
    table = chain_table([(ring.place(pfn_array([pfn])), 4, 0) for pfn in (50, 60)])
    ring.set_desc(direct, ring.place(table), len(table), INDIRECT | WRITE)
    ring.set_avail_ring(0, 0)
    ring.set_avail_idx(1)
    driver.notify(INFLATE)
    driver.board.serve()
    assert driver.board.balloon.counters.inflate.pages == direct + 2


@pytest.mark.conformance("2.7.7.2-1", "2.7.7.2-3")
@pytest.mark.parametrize("used_event", [0, 1, 5, 0xFFFF])
def test_used_event_is_ignored_without_event_idx(used_event: int) -> None:
    driver = DriverQueue(guest_memory(1 << 16), 8, event_idx=False)
    queue = driver.device_queue()
    for _ in range(3):
        driver.add([b"x"])
        driver.set_used_event(used_event)
        chain = queue.pop(100)
        assert chain
        queue.push(chain)
        assert queue.should_interrupt()


@pytest.mark.conformance("2.7.7.2-3", "2.7.7.2-5")
@pytest.mark.parametrize("wanted", [VERSION_1, VERSION_1 | EVENT_IDX])
def test_buffers_used_before_a_ring_error_are_notified(wanted: int) -> None:
    driver = BalloonDriver(STANDARD).start(features=wanted)
    ring = driver.queues[INFLATE]
    ring.add([pfn_array([1])])
    ring.set_avail_ring(1, 500)
    ring.set_avail_idx(2)
    driver.notify(INFLATE)
    driver.board.serve()
    assert driver.status & NEEDS_RESET
    assert ring.used_idx == 1
    assert driver.board.msi.triggered == [INFLATE + 1, 0]


@pytest.mark.conformance("2.7.7.2-4", "2.7.7.2-5")
def test_avail_flags_are_ignored_with_event_idx() -> None:
    driver = DriverQueue(guest_memory(1 << 16), 8, event_idx=True)
    queue = driver.device_queue()
    driver.set_avail_flags(NO_INTERRUPT)
    driver.set_used_event(0)
    driver.add([b"x"])
    chain = queue.pop(100)
    assert chain
    queue.push(chain)
    assert queue.should_interrupt()


SIZE = 1024
"""A queue size at which some used elements are on another page than the index."""


def push_with(protected_page: int) -> tuple[int, GuestMemory, DriverQueue]:
    """Push used element 700 of a ring in a child process, with a page it cannot write.

    Returns the signal it died of, and the memory it left behind.
    """
    area = mmap(-1, 1 << 20)
    memory = GuestMemory([(0, area)])
    driver = DriverQueue(memory, SIZE, base_gpa=0, start_index=700)
    assert driver.used_gpa // PAGE_BYTES != (driver.used_gpa + 4 + 8 * 700) // PAGE_BYTES
    queue = driver.device_queue()
    driver.add(writable=[16])
    chain = queue.pop(100)
    assert chain
    child = os.fork()
    if child == 0:
        try:
            address = ctypes.addressof(ctypes.c_char.from_buffer(area))
            start = address + protected_page * PAGE_BYTES
            libc = ctypes.CDLL(None)
            libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(PAGE_BYTES), PROT_READ)
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            queue.push(chain, chain.write(b"answer"))
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the push went through"
    return os.WTERMSIG(status), memory, driver


@pytest.mark.conformance("2.7.8.2-1", "2.7.8.2-2")
def test_the_used_element_is_written_before_the_index() -> None:
    """The order of the stores, observed by stopping the device at each of them."""
    layout = DriverQueue(guest_memory(1 << 20), SIZE, base_gpa=0)
    index_page = (layout.used_gpa + 2) // PAGE_BYTES
    element_page = (layout.used_gpa + 4 + 8 * 700) // PAGE_BYTES
    stopped, _, driver = push_with(element_page)
    assert stopped == signal.SIGSEGV
    assert driver.used_idx == 700, "stopped at the element: the index has not moved"
    stopped, memory, driver = push_with(index_page)
    assert stopped == signal.SIGSEGV
    assert driver.used_idx == 700
    element = memory.read(driver.used_gpa + 4 + 8 * 700, 8)
    assert element == (0).to_bytes(4, "little") + (6).to_bytes(4, "little")
    assert memory.read(driver.data_gpa, 6) == b"answer"


@pytest.mark.conformance("2.7.10.2-1", "2.7.10.2-3")
@pytest.mark.parametrize("event_idx", [False, True])
def test_used_flags_are_0_or_1_and_0_with_event_idx(event_idx: bool) -> None:
    driver = BalloonDriver(STANDARD).start(features=VERSION_1 | EVENT_IDX * event_idx)
    ring, seen = driver.queues[INFLATE], set()
    real = driver.board.ram.discard

    def discard(*args):  # type: ignore[no-untyped-def]
        seen.add(ring.used_flags)
        return real(*args)

    driver.board.ram.discard = discard  # type: ignore[method-assign]
    for pfn in range(20):
        driver.send(INFLATE, [pfn_array([pfn])])
        seen.add(ring.used_flags)
    assert seen == ({0} if event_idx else {0, 1})


@pytest.mark.conformance("2.7.10.2-5")
@pytest.mark.parametrize("wanted", [VERSION_1, VERSION_1 | EVENT_IDX])
def test_spurious_notifications_have_no_effect(wanted: int) -> None:
    driver = BalloonDriver(STANDARD).start(features=wanted)
    for _ in range(3):
        for queue in (INFLATE, DEFLATE):
            driver.notify(queue)
            driver.board.serve()
        assert driver.board.msi.triggered == []
        assert driver.board.balloon.counters.inflate.requests == 0
    assert len(driver.send(INFLATE, [pfn_array([1])])) == 1


@pytest.mark.conformance("2.7.13.3-1")
def test_one_notification_suffices_for_several_buffers() -> None:
    driver = BalloonDriver(STANDARD).start()
    ring = driver.queues[INFLATE]
    real = driver.board.ram.discard

    def discard(*args):  # type: ignore[no-untyped-def]
        if ring.free_descriptors == ring.size - 1:
            ring.add([pfn_array([2])])  # made available while the device serves the first
        return real(*args)

    driver.board.ram.discard = discard  # type: ignore[method-assign]
    assert len(driver.send(INFLATE, [pfn_array([1])])) == 2
