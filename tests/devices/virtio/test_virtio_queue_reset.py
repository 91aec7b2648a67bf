# SPDX-License-Identifier: Apache-2.0
"""Resetting one queue (VIRTIO_F_RING_RESET; VIRTIO 1.2, 2.6.1 and 4.1.4.3)."""

import pytest

from devices.balloon.dialects import BITMAP, STANDARD
from devices.testing.balloon.driver import DEFLATE, INFLATE, STATS, BalloonDriver
from devices.testing.balloon.requests import pfn_array
from devices.testing.driver import ALL_FEATURES, NEEDS_RESET, NO_VECTOR, RING_RESET


def reset_queue(driver: BalloonDriver, index: int) -> None:
    driver.write_common("queue_select", index)
    driver.write_common("queue_reset", 1)


@pytest.mark.conformance("2.6.1.1.1-2", "4.1.4.3.1-11", "4.1.4.3.1-13")
def test_a_reset_queue_is_as_on_a_fresh_device() -> None:
    driver = BalloonDriver(STANDARD).start()
    assert driver.features & RING_RESET
    reset_queue(driver, INFLATE)
    assert driver.read_common("queue_reset") == 0, "reset is complete"
    assert driver.read_common("queue_enable") == 0
    assert driver.read_common("queue_size") == 128
    assert driver.read_common("queue_msix_vector") == NO_VECTOR
    for half in ("desc_lo", "desc_hi", "driver_lo", "device_lo"):
        assert driver.read_common(f"queue_{half}") == 0
    driver.write_common("queue_select", DEFLATE)
    assert driver.read_common("queue_enable") == 1
    assert driver.read_common("queue_msix_vector") == DEFLATE + 1


@pytest.mark.conformance("2.6.1.1.1-1")
def test_no_buffer_is_taken_from_a_reset_queue() -> None:
    driver = BalloonDriver(STANDARD).start()
    board = driver.board
    driver.queues[INFLATE].add([pfn_array([1])])
    reset_queue(driver, INFLATE)
    assert INFLATE not in board.notifiers.assigned
    board.notifiers.notify(INFLATE)
    board.serve()
    assert driver.queues[INFLATE].used_idx == 0
    assert board.ram.discarded == []
    assert board.msi.triggered == []
    assert len(driver.send(DEFLATE, [pfn_array([1])])) == 1, "the other queues still work"


@pytest.mark.conformance("2.6.1.1.1-2", "2.6.1.2.1-1")
def test_a_queue_may_be_enabled_again_elsewhere_and_smaller() -> None:
    driver = BalloonDriver(STANDARD).start()
    assert len(driver.send(INFLATE, [pfn_array([1])])) == 1
    reset_queue(driver, INFLATE)
    driver.rings_gpa += 64 * 4096
    driver.set_up_queue(INFLATE, size=8, vector=2)
    for pfn in range(2, 30):  # more than once around the smaller ring
        assert len(driver.send(INFLATE, [pfn_array([pfn])])) == 1
    assert driver.board.msi.triggered[-1] == 2
    assert driver.board.balloon.counters.inflate.pages == 29


def test_a_queue_reset_drops_a_kept_buffer() -> None:
    driver = BalloonDriver(BITMAP).start()
    assert driver.send(STATS, [bytes(10)]) == []
    reset_queue(driver, STATS)
    driver.set_up_queue(STATS)
    assert driver.send(STATS, [bytes(10)]) == [], "kept, as the first after a reset"


def test_a_broken_ring_still_needs_a_device_reset() -> None:
    driver = BalloonDriver(STANDARD).start()
    driver.queues[INFLATE].set_avail_idx(999)
    driver.notify(INFLATE)
    driver.board.serve()
    reset_queue(driver, INFLATE)
    driver.set_up_queue(INFLATE)
    assert driver.status & NEEDS_RESET
    assert driver.send(INFLATE, [pfn_array([1])]) == []


@pytest.mark.parametrize("value", [0, 2, 0xFFFF])
def test_only_1_resets_a_queue(value: int) -> None:
    driver = BalloonDriver(STANDARD).start()
    driver.write_common("queue_select", INFLATE)
    driver.write_common("queue_reset", value)
    assert driver.read_common("queue_enable") == 1


def test_queue_reset_reads_zero_without_ring_reset() -> None:
    driver = BalloonDriver(STANDARD).start(features=ALL_FEATURES & ~RING_RESET)
    reset_queue(driver, INFLATE)
    assert driver.read_common("queue_enable") == 1
    assert driver.read_common("queue_reset") == 0
    assert len(driver.send(INFLATE, [pfn_array([1])])) == 1


def test_resetting_a_queue_that_does_not_exist_is_ignored() -> None:
    driver = BalloonDriver(STANDARD).start()
    reset_queue(driver, 99)
    assert driver.read_common("queue_reset") == 0
