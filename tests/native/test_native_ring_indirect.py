# SPDX-License-Identifier: Apache-2.0
"""Each rule of VIRTIO 1.2, 2.7.5.3 on indirect descriptor tables, one by one."""

from __future__ import annotations

import pytest

from devices.testing.driver_queue import (
    INDIRECT,
    NEXT,
    WRITE,
    DriverQueue,
    chain_table,
    descriptor,
)
from devices.testing.ram import guest_memory
from pyvmm_native.ring import RingError
from tests.native.raw_chains import RAM_BYTES, offer, offer_table


@pytest.fixture
def driver() -> DriverQueue:
    return DriverQueue(guest_memory(RAM_BYTES), 8, indirect=True)


def test_an_indirect_table_without_the_feature_is_an_error() -> None:
    driver = DriverQueue(guest_memory(RAM_BYTES), 8, indirect=False)
    with pytest.raises(RingError, match="not negotiated"):
        offer_table(driver, chain_table([(0, 4, 0)])).pop(100)


@pytest.mark.conformance("2.7.5.3.2-1")
def test_the_write_flag_of_an_indirect_table_is_ignored(driver: DriverQueue) -> None:
    table = chain_table([(driver.place(b"data"), 4, 0), (driver.place(b""), 2, WRITE)])
    chain = offer_table(driver, table, INDIRECT | WRITE).pop(100)
    assert chain is not None
    assert (chain.readable, chain.writable_bytes) == (b"data", 2)


@pytest.mark.conformance("2.7.5.3.2-2")
def test_an_indirect_table_may_follow_direct_elements(driver: DriverQueue) -> None:
    queue = driver.device_queue()
    driver.add([b"a", b"b", b"c"], [1], indirect=True, direct_first=2)
    chain = queue.pop(100)
    assert chain is not None
    assert (chain.readable, chain.writable_bytes) == (b"abc", 1)


def test_an_indirect_table_with_next_is_an_error(driver: DriverQueue) -> None:
    with pytest.raises(RingError, match="NEXT and INDIRECT"):
        offer_table(driver, chain_table([(0, 4, 0)]), INDIRECT | NEXT).pop(100)


def test_a_nested_indirect_table_is_an_error(driver: DriverQueue) -> None:
    inner = driver.place(chain_table([(0, 4, 0)]))
    with pytest.raises(RingError, match="inside an indirect table"):
        offer_table(driver, descriptor(inner, 16, INDIRECT)).pop(100)


@pytest.mark.parametrize("length", [0, 1, 15, 17, 24])
def test_an_indirect_table_of_partial_descriptors_is_an_error(
    driver: DriverQueue, length: int
) -> None:
    with pytest.raises(RingError, match="whole number"):
        offer(driver, (4096, length, INDIRECT, 0)).pop(100)


@pytest.mark.parametrize("gpa", [RAM_BYTES, RAM_BYTES - 16, (1 << 64) - 16])
def test_an_indirect_table_outside_ram_is_an_error(driver: DriverQueue, gpa: int) -> None:
    with pytest.raises(RingError, match="table outside"):
        offer(driver, (gpa, 32, INDIRECT, 0)).pop(100)


def test_a_next_outside_the_indirect_table_is_an_error(driver: DriverQueue) -> None:
    with pytest.raises(RingError, match="index outside"):
        offer_table(driver, descriptor(0, 4, NEXT, 2) + descriptor(0, 4)).pop(100)


def test_a_loop_in_an_indirect_table_is_an_error(driver: DriverQueue) -> None:
    with pytest.raises(RingError, match="loop"):
        offer_table(driver, descriptor(0, 4, NEXT, 0)).pop(100)


@pytest.mark.conformance("2.7.4.1-2")
def test_an_indirect_chain_longer_than_the_queue_is_an_error(driver: DriverQueue) -> None:
    assert offer_table(driver, chain_table([(0, 4, 0)] * 8)).pop(100)
    with pytest.raises(RingError, match="longer than the queue"):
        offer_table(driver, chain_table([(0, 4, 0)] * 9)).pop(100)


def test_an_indirect_table_may_have_any_address(driver: DriverQueue) -> None:
    table = b"?" + chain_table([(driver.place(b"data"), 4, 0)])
    chain = offer(driver, (driver.place(table) + 1, 16, INDIRECT, 0)).pop(100)
    assert chain is not None
    assert chain.readable == b"data"
