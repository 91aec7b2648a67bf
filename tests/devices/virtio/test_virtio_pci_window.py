# SPDX-License-Identifier: Apache-2.0
"""The PCI configuration access capability (VIRTIO 1.2, section 4.1.4.9)."""

import pytest

from devices.balloon.dialects import STANDARD
from devices.testing.balloon.driver import BalloonDriver
from devices.testing.driver import ACKNOWLEDGE, COMMON_CFG, ISR_CFG, PCI_CFG


def window(driver: BalloonDriver, bar: int, offset: int, length: int) -> int:
    capability = driver.structures[PCI_CFG].capability
    driver.write_pci(capability + 4, 1, bar)
    driver.write_pci(capability + 8, 4, offset)
    driver.write_pci(capability + 12, 4, length)
    return capability + 16


@pytest.mark.conformance("4.1.4.9.1-2", "4.1.4.9.1-3")
def test_pci_cfg_window_reads_and_writes_the_structures() -> None:
    driver = BalloonDriver(STANDARD).probe()
    common = driver.structures[COMMON_CFG].offset
    data = window(driver, 0, common + 20, 1)
    driver.write_pci(data, 1, ACKNOWLEDGE)
    assert driver.status == ACKNOWLEDGE
    assert driver.read_pci(data, 1) == ACKNOWLEDGE
    data = window(driver, 0, common + 18, 2)
    assert driver.read_pci(data, 2) == len(driver.board.device.queues)
    data = window(driver, 0, common + 0, 4)
    driver.write_pci(data, 4, 1)
    assert driver.read_common("device_feature_select") == 1
    assert driver.read_pci(driver.structures[PCI_CFG].capability + 12, 4) == 4


def test_pci_cfg_window_needs_no_decoded_bar() -> None:
    driver = BalloonDriver(STANDARD).probe()
    driver.write_pci(0x04, 2, 0)
    assert driver.read_pci(window(driver, 0, 18, 2), 2) == len(driver.board.device.queues)


def test_only_reading_the_data_reads_the_bar() -> None:
    driver = BalloonDriver(STANDARD).start(msix=False)
    driver.board.balloon.set_target(1)
    data = window(driver, 0, driver.structures[ISR_CFG].offset, 1)
    driver.write_pci(data, 1, 0xFF)
    assert driver.read_pci(data - 4, 4) == 1, "the length field"
    assert driver.board.line.level is True
    assert driver.read_pci(data, 1) == 2
    assert driver.board.line.level is False


@pytest.mark.parametrize(
    ("bar", "offset", "length"),
    [
        (0, 0, 0),
        (0, 0, 3),
        (0, 0, 8),
        (0, 20, 0xFFFF_FFFF),
        (0, 1, 2),
        (0, 0x4000, 1),
        (0, 0xFFFF_FFFC, 4),
        (1, 0, 4),
        (2, 0, 4),
        (5, 0, 4),
        (255, 0, 4),
    ],
)
def test_hostile_windows_do_nothing(bar: int, offset: int, length: int) -> None:
    driver = BalloonDriver(STANDARD).probe()
    before = driver.board.tracer.events[:]
    data = window(driver, bar, offset, length)
    assert driver.read_pci(data, 4) == 0
    driver.write_pci(data, 4, 0xFFFF_FFFF)
    assert driver.status == 0
    assert driver.read_common("device_feature_select") == 0
    assert driver.board.tracer.events == before
