# SPDX-License-Identifier: Apache-2.0
"""Hostile guests: broken rings, arbitrary register accesses, attempts to fill the log."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.balloon.dialects import BITMAP, HYBRID, RANGES, STANDARD, Dialect
from devices.testing.balloon.driver import DEFLATE, INFLATE, BalloonDriver
from devices.testing.balloon.requests import pfn_array
from devices.testing.board import APERTURE
from devices.testing.driver import (
    ACKNOWLEDGE,
    ALL_FEATURES,
    DRIVER,
    DRIVER_OK,
    FEATURES_OK,
    INDIRECT_DESC,
    NEEDS_RESET,
    VERSION_1,
)
from devices.testing.strategies import RingContents, ring_contents
from pyvmm.trace.logging import WARNINGS
from pyvmm.units import MIB


@pytest.mark.conformance("2.1.2-2", "2.1.2-3")
def test_a_broken_chain_sets_needs_reset_and_notifies_the_driver() -> None:
    driver = BalloonDriver(STANDARD).start()
    board, queue = driver.board, driver.queues[INFLATE]
    queue.set_avail_ring(0, 500)
    queue.set_avail_idx(1)
    driver.notify(INFLATE)
    board.serve()
    assert driver.status == ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | NEEDS_RESET
    assert board.msi.triggered == [0]
    assert driver.read_isr() == 2
    assert [name for name in board.tracer.names if "reset" in name] == ["balloon.needs_reset"]
    # The device no longer touches any queue, the intact one included.
    assert board.notifiers.assigned == {}
    assert driver.send(DEFLATE, [pfn_array([1])]) == []
    board.balloon.set_target(5)
    assert board.msi.triggered == [0]
    driver.start()
    assert len(driver.send(DEFLATE, [pfn_array([1])])) == 1


@pytest.mark.conformance("2.1.2-2", "2.1.2-3")
def test_a_ring_outside_ram_sets_needs_reset_at_driver_ok() -> None:
    driver = BalloonDriver(STANDARD).probe()
    driver.enable_msix()
    driver.negotiate()
    driver.write_common("config_msix_vector", 0)
    driver.set_up_queue(INFLATE)
    driver.write_common("queue_select", DEFLATE)
    driver.write_common("queue_desc_hi", 0xFFFF)
    driver.write_common("queue_enable", 1)
    assert driver.add_status(DRIVER_OK) & NEEDS_RESET
    assert driver.board.msi.triggered == [0]
    assert driver.board.notifiers.assigned == {}


def test_a_guest_cannot_fill_the_log() -> None:
    driver = BalloonDriver(STANDARD).start()
    for _ in range(1000):
        assert driver.send(INFLATE, [b"odd"])[0].length == 0
    bad = [fields for name, fields in driver.board.tracer.events if name == "balloon.bad_payload"]
    assert [fields["count"] for fields in bad] == [1 << n for n in range(10)]
    assert driver.board.balloon.counters.inflate.bad_payloads == 1000


# Hostile accesses: no register access by a guest raises an exception.

ACCESS = st.tuples(
    st.booleans(),
    st.sampled_from(["config", "virtio", "msix"]),
    st.integers(0, 0x4000),
    st.sampled_from([1, 2, 4, 8]),
    st.one_of(st.integers(0, 255), st.integers(0, 2**64 - 1)),
)


@settings(max_examples=100, deadline=None)
@given(
    accesses=st.lists(ACCESS, max_size=60),
    dialect=st.sampled_from([STANDARD, BITMAP, HYBRID, RANGES]),
)
def test_no_register_access_raises(
    accesses: list[tuple[bool, str, int, int, int]], dialect: Dialect
) -> None:
    driver = BalloonDriver(dialect).start()
    board = driver.board
    ranges = {"virtio": (driver.bars[0], 0x4000), "msix": (driver.bars[2], 0x1000)}
    for is_write, space, offset, size, value in accesses:
        value &= (1 << 8 * size) - 1
        if space == "config":
            offset = offset % 256
            size = min(size, 4, 256 - offset)
            value &= (1 << 8 * size) - 1
            if is_write:
                driver.write_pci(offset, size, value)
            else:
                assert 0 <= driver.read_pci(offset, size) < 1 << 8 * size
        else:
            base, length = ranges[space]
            if is_write:
                board.mmio.write(base + offset % length, size, value)
            else:
                assert 0 <= board.mmio.read(base + offset % length, size) < 1 << 8 * size
        board.serve()


# Hostile rings: with any contents of guest memory, the device serves, needs a reset, or waits.


@settings(max_examples=150, deadline=None)
@given(
    contents=ring_contents(16, 64 * MIB),
    payload=st.binary(max_size=256),
    dialect=st.sampled_from([STANDARD, BITMAP, HYBRID, RANGES]),
    features=st.sampled_from([ALL_FEATURES, VERSION_1, VERSION_1 | INDIRECT_DESC]),
    queue=st.sampled_from([INFLATE, DEFLATE]),
)
def test_no_ring_contents_raise(
    contents: RingContents,
    payload: bytes,
    dialect: Dialect,
    features: int,
    queue: int,
) -> None:
    features |= dialect.features.required
    driver = BalloonDriver(dialect, rings_gpa=1 * MIB).start(features=features, size=16)
    board = driver.board
    ring = driver.queues[queue]
    board.ram.memory.write(0, payload)
    contents.write_to(ring)
    driver.notify(queue)
    assert board.serve() <= 17, "16 entries are at most 16 rounds of work and one to see the end"
    returned = ring.used_idx
    if driver.status & NEEDS_RESET:
        assert board.msi.triggered[-1] == 0
        assert board.notifiers.assigned == {}
    else:
        assert returned == contents.avail_idx
    assert all(run.subtract(board.ram.pages).pages == 0 for run in board.ram.discarded)


def test_a_large_buffer_is_the_last_of_its_call() -> None:
    """Bytes for the device to write or discard count like those to read."""
    driver = BalloonDriver(STANDARD).start()
    queue = driver.queues[INFLATE]
    for _ in range(3):
        queue.add([pfn_array([1])], [64 * 1024])
    driver.notify(INFLATE)
    assert driver.board.serve() == 4, "three buffers, and one call to see that there are no more"


def test_notifications_without_bus_mastering_are_served_later() -> None:
    """Notifications that arrive without bus mastering are served once it is enabled."""
    driver = BalloonDriver(STANDARD).start()
    driver.write_pci(0x04, 2, 0b010)
    assert driver.send(INFLATE, [pfn_array([1])]) == []
    driver.write_pci(0x04, 2, 0b110)
    driver.board.serve()
    assert len(driver.queues[INFLATE].take_used()) == 1


def test_repeated_reconfiguration_leaves_the_last_state() -> None:
    """Moving BARs, rewriting vectors and notifying leaves the state of the last write."""
    driver = BalloonDriver(STANDARD).start()
    board = driver.board
    for i in range(2000):
        driver.write_pci(0x10, 4, APERTURE[0] + (i % 7) * 0x4000)
        driver.write_pci(0x04, 2, 0b110 if i % 3 else 0b100)
        board.mmio.write(driver.bars[2] + 16 + 8, 4, i)
        driver.notify(INFLATE)
        driver.write_config(4, 4, i)
    driver.write_pci(0x04, 2, 0b110)
    driver.write_pci(0x10, 4, driver.bars[0])
    assert set(board.notifiers.assigned.values()) == {
        driver.bars[0] + 0x3000 + 4 * index for index in driver.queues
    }
    loud = [name for name in board.tracer.names if name.rpartition(".")[2] in WARNINGS]
    assert len(loud) < 20
    board.serve()
    assert len(driver.send(INFLATE, [pfn_array([1])])) == 1


def test_ring_indices_wrap_while_buffers_are_served() -> None:
    """More buffers than an index can count, all of the same descriptors."""
    driver = BalloonDriver(STANDARD).start()
    queue = driver.queues[INFLATE]
    queue.add([pfn_array([1])])
    driver.notify(INFLATE)
    driver.board.serve()
    for slot in range(queue.size):
        queue.set_avail_ring(slot, 0)
    for index in range(1 + queue.size, 65536 + 3 * queue.size, queue.size):
        queue.set_avail_idx(index)
        while driver.board.transport.serve_queue(INFLATE):
            pass
        assert queue.used_idx == index & 0xFFFF
    assert driver.board.balloon.counters.inflate.pages > 65536
    assert not driver.status & NEEDS_RESET
