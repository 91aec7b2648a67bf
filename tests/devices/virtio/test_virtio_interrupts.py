# SPDX-License-Identifier: Apache-2.0
"""INTx, ISR status and MSI-X (VIRTIO 1.2, sections 4.1.4.5 and 4.1.5)."""

import pytest

from devices.balloon.dialects import STANDARD
from devices.testing.balloon.driver import DEFLATE, INFLATE, BalloonDriver
from devices.testing.balloon.requests import pfn_array
from devices.testing.driver import NO_VECTOR, VERSION_1
from devices.virtio.pci_transport import MSIX_BAR, MSIX_PBA_OFFSET


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


def test_the_pin_is_low_while_msix_is_enabled() -> None:
    """PCI Local Bus 3.0, 6.8.2.3: a function with MSI-X enabled must not use its pin."""
    driver = BalloonDriver(STANDARD).start(msix=False)
    board = driver.board
    board.balloon.set_target(1)
    assert board.line.level is True
    driver.enable_msix()
    assert board.line.level is False
    driver.write_pci(driver.msix_capability + 2, 2, 0)
    assert board.line.level is True, "still pending"


def test_a_driver_polls_masked_vectors_in_the_pending_bits() -> None:
    driver = BalloonDriver(STANDARD).start()
    board = driver.board
    bar = board.function.bar_gpa(MSIX_BAR)
    assert bar is not None
    board.mmio.write(bar + 12, 4, 1)  # mask vector 0, that of the configuration
    board.balloon.set_target(1)
    assert board.msi.triggered == []
    assert board.mmio.read(bar + MSIX_PBA_OFFSET, 8) == 1
    board.mmio.write(bar + 12, 4, 0)
    assert board.msi.triggered == [0]
    assert board.mmio.read(bar + MSIX_PBA_OFFSET, 8) == 0


@pytest.mark.conformance("2.7.7.2-2")
def test_a_driver_can_suppress_interrupts() -> None:
    driver = BalloonDriver(STANDARD).start(features=VERSION_1)
    driver.queues[INFLATE].set_avail_flags(1)
    assert len(driver.send(INFLATE, [pfn_array([1])])) == 1
    assert driver.board.msi.triggered == []


@pytest.mark.parametrize(
    ("request_bytes", "calls"),
    [(pfn_array([7]), 2), (b"bad", 7)],
    ids=["64 requests a call", "16 other buffers a call"],
)
def test_a_batch_interrupts_once_and_work_per_call_is_bounded(
    request_bytes: bytes, calls: int
) -> None:
    driver = BalloonDriver(STANDARD).start(features=VERSION_1)
    queue = driver.queues[INFLATE]
    for _ in range(100):
        queue.add([request_bytes])
    driver.notify(INFLATE)
    assert driver.board.serve() == calls
    assert len(queue.take_used()) == 100
    assert driver.board.msi.triggered == [1] * calls
    assert not queue.used_flags & 1, "notifications are enabled again"
