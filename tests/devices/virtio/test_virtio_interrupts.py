# SPDX-License-Identifier: Apache-2.0
"""INTx, ISR status and MSI-X (VIRTIO 1.2, sections 4.1.4.5 and 4.1.5)."""

import pytest

from devices.balloon.dialects import STANDARD
from devices.testing.balloon.driver import DEFLATE, INFLATE, BalloonDriver
from devices.testing.balloon.requests import pfn_array
from devices.testing.driver import NO_VECTOR, VERSION_1


@pytest.mark.conformance("3.2.1-1", "4.1.4.5.1-2")
def test_msix_interrupts_go_to_the_mapped_vectors() -> None:
    driver = BalloonDriver(STANDARD).start()
    board = driver.board
    assert board.msi.routes[0] == (0xFEE0_0000, 0x40)
    driver.send(DEFLATE, [pfn_array([5])])
    assert board.msi.triggered == [DEFLATE + 1]
    board.balloon.set_target(1)
    assert board.msi.triggered == [DEFLATE + 1, 0]
    assert board.line.level is False
    # 4.1.4.5.1: the configuration bit is set with MSI-X too, the queue bit is not.
    assert driver.read_isr() == 2
    assert driver.read_isr() == 0


@pytest.mark.conformance("4.1.5.4.1-2")
def test_unmapped_events_do_not_interrupt() -> None:
    driver = BalloonDriver(STANDARD).start()
    driver.write_common("config_msix_vector", NO_VECTOR)
    driver.board.balloon.set_target(1)
    assert driver.board.msi.triggered == []
    assert driver.board.line.level is False


@pytest.mark.conformance("4.1.4.5.1-3", "4.1.4.5.1-4", "4.1.4.5.1-5", "4.1.5.4.1-1")
def test_intx_rises_with_isr_and_falls_when_it_is_read() -> None:
    driver = BalloonDriver(STANDARD).start(msix=False)
    board = driver.board
    driver.send(INFLATE, [pfn_array([1])])
    assert board.line.level is True
    assert driver.read_pci(0x06, 2) & 1 << 3, "interrupt status bit"
    board.balloon.set_target(1)
    assert driver.read_isr() == 3
    assert board.line.level is False
    assert driver.read_pci(0x06, 2) & 1 << 3 == 0
    assert board.msi.triggered == []


@pytest.mark.conformance("2.7.7.2-2")
def test_a_driver_can_suppress_interrupts() -> None:
    driver = BalloonDriver(STANDARD).start(features=VERSION_1)
    driver.queues[INFLATE].set_avail_flags(1)
    assert len(driver.send(INFLATE, [pfn_array([1])])) == 1
    assert driver.board.msi.triggered == []


def test_a_batch_interrupts_once_and_work_per_call_is_bounded() -> None:
    driver = BalloonDriver(STANDARD).start(features=VERSION_1)
    queue = driver.queues[INFLATE]
    for pfn in range(100):
        queue.add([pfn_array([pfn])])
    driver.notify(INFLATE)
    calls = driver.board.serve()
    assert len(queue.take_used()) == 100
    assert calls == 7, "16 buffers a call"
    assert driver.board.msi.triggered == [1] * 7
    assert not queue.used_flags & 1, "notifications are enabled again"
