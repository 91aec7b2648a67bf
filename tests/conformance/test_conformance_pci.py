# SPDX-License-Identifier: Apache-2.0
"""Requirements of VIRTIO 1.2 on a PCI device (4.1) that no other test covers."""

import pytest

from devices.balloon import features
from devices.balloon.dialects import STANDARD
from devices.testing.balloon.driver import DEFLATE, INFLATE, STATS, BalloonDriver
from devices.testing.balloon.requests import pfn_array
from devices.testing.driver import (
    ACKNOWLEDGE,
    ALL_FEATURES,
    COMMON,
    COMMON_CFG,
    DEVICE_CFG,
    DRIVER,
    NO_VECTOR,
    NOTIFY_CFG,
    PCI_CFG,
    VERSION_1,
)

INTERRUPT_STATUS = 1 << 3
MSIX_ENABLE = 1 << 15


def interrupt_status(driver: BalloonDriver) -> bool:
    return bool(driver.read_pci(0x06, 2) & INTERRUPT_STATUS)


def turn_msix(driver: BalloonDriver, on: bool) -> None:
    driver.write_pci(driver.msix_capability + 2, 2, MSIX_ENABLE * on)


# Capabilities.


@pytest.mark.conformance("4.1.4-1")
def test_capabilities_are_read_only_except_for_the_pci_cfg_window() -> None:
    driver = BalloonDriver(STANDARD).probe()
    for cfg_type, structure in driver.structures.items():
        first = structure.capability
        length = driver.read_pci(first + 2, 1)
        writable = {4, *range(8, length)} if cfg_type == PCI_CFG else set()
        for offset in set(range(length)) - writable:
            before = driver.read_pci(first + offset, 1)
            driver.write_pci(first + offset, 1, before ^ 0xFF)
            assert driver.read_pci(first + offset, 1) == before, (cfg_type, offset)


@pytest.mark.conformance("4.1.4.3.1-1", "4.1.4.4.1-2", "4.1.4.6.1-1")
@pytest.mark.parametrize(
    ("cfg_type", "alignment"), [(COMMON_CFG, 4), (NOTIFY_CFG, 2), (DEVICE_CFG, 4)]
)
def test_structures_are_aligned(cfg_type: int, alignment: int) -> None:
    assert BalloonDriver(STANDARD).probe().structures[cfg_type].offset % alignment == 0


@pytest.mark.conformance("4.1.4.4.1-4")
def test_every_possible_queue_has_a_notification_address() -> None:
    driver = BalloonDriver(STANDARD, offered=features.STANDARD.known).probe()
    offsets = set()
    for index in range(driver.read_common("num_queues")):
        driver.write_common("queue_select", index)
        offset = driver.read_common("queue_notify_off") * driver.notify_multiplier
        assert offset + 2 <= driver.structures[NOTIFY_CFG].length
        offsets.add(offset)
    assert len(offsets) == driver.read_common("num_queues")


@pytest.mark.conformance("4.1.4.9.1-2", "4.1.4.9.1-3")
def test_a_device_can_be_driven_through_the_pci_cfg_window_alone() -> None:
    driver = BalloonDriver(STANDARD).start()
    window = driver.structures[PCI_CFG].capability

    def point(cfg_type: int, offset: int, length: int) -> None:
        driver.write_pci(window + 4, 1, driver.structures[cfg_type].bar)
        driver.write_pci(window + 8, 4, driver.structures[cfg_type].offset + offset)
        driver.write_pci(window + 12, 4, length)

    driver.board.balloon.set_target(0x0304)
    for length, value in ((4, 0x0304), (2, 0x0304), (1, 0x04)):
        point(DEVICE_CFG, 0, length)
        assert driver.read_pci(window + 16, length) == value
    point(DEVICE_CFG, 4, 4)
    driver.write_pci(window + 16, 4, 0xFFFF_FFFF)
    point(DEVICE_CFG, 4, 2)
    driver.write_pci(window + 16, 4, 0x1111_2222)
    assert driver.read_config(4) == 0xFFFF_2222, "no more than the first 2 bytes"
    driver.write_common("queue_select", DEFLATE)
    driver.write_common("queue_reset", 1)
    point(COMMON_CFG, COMMON["queue_size"][0], 2)
    driver.write_pci(window + 16, 4, 0x1111_0010)
    assert driver.read_common("queue_size") == 16
    driver.queues[INFLATE].add([pfn_array([1])])
    point(NOTIFY_CFG, INFLATE * driver.notify_multiplier, 2)
    driver.write_pci(window + 16, 2, INFLATE)
    driver.board.serve()
    assert driver.queues[INFLATE].used_idx == 1


# Common configuration.


@pytest.mark.conformance("4.1.4.3.1-4", "4.1.4.3.1-5")
def test_features_read_back_as_written_whether_valid_or_not() -> None:
    driver = BalloonDriver(STANDARD).probe()
    driver.write_common("device_status", ACKNOWLEDGE | DRIVER)
    for select, bits in ((0, 0xFFFF_FFFF), (1, 0xFFFF_FFFF), (0, 1 << 28), (1, 0)):
        driver.write_common("driver_feature_select", select)
        driver.write_common("driver_feature", bits)
        assert driver.read_common("driver_feature") == bits


@pytest.mark.conformance("4.1.4.3.1-9", "4.1.4.3.1-10")
def test_queue_reset_reads_0_after_a_reset_and_once_enabled() -> None:
    driver = BalloonDriver(STANDARD).start()
    driver.write_common("queue_select", INFLATE)
    assert driver.read_common("queue_enable") == 1
    assert driver.read_common("queue_reset") == 0
    driver.write_common("queue_reset", 1)
    driver.set_up_queue(INFLATE)
    assert driver.read_common("queue_reset") == 0
    driver.write_common("queue_reset", 1)
    driver.reset()
    for index in range(driver.read_common("num_queues")):
        driver.write_common("queue_select", index)
        assert driver.read_common("queue_reset") == driver.read_common("queue_enable") == 0


@pytest.mark.conformance("4.1.4.3.1-14", "5.5.2-2")
def test_a_queue_whose_feature_was_declined_does_not_exist() -> None:
    driver = BalloonDriver(STANDARD).probe()
    driver.negotiate(ALL_FEATURES & ~features.STATS_VQ)
    driver.write_common("queue_select", STATS)
    assert driver.read_common("queue_size") == 0
    driver.write_common("queue_enable", 1)
    assert driver.read_common("queue_enable") == 0
    driver.negotiate()
    driver.write_common("queue_select", STATS)
    assert driver.read_common("queue_size") > 0


# Notifications and interrupts.


@pytest.mark.conformance("4.1.5.2-1")
@pytest.mark.parametrize("queue", [INFLATE, DEFLATE])
def test_the_index_written_to_the_notification_address_notifies_the_queue(queue: int) -> None:
    driver = BalloonDriver(STANDARD).start()
    other = DEFLATE if queue == INFLATE else INFLATE
    for each in (queue, other):
        driver.queues[each].add([pfn_array([1])])
    driver.write_common("queue_select", queue)
    offset = driver.read_common("queue_notify_off") * driver.notify_multiplier
    driver.board.mmio.write(driver.structure_gpa(NOTIFY_CFG, offset), 2, queue)
    driver.board.serve()
    assert driver.queues[queue].used_idx == 1
    assert driver.queues[other].used_idx == 0


@pytest.mark.conformance("4.1.5.1.2.1-1", "4.1.5.1.2.1-4", "4.1.5.1.2.1-5", "4.1.5.1.2.1-8")
def test_any_event_can_be_mapped_to_any_vector_or_none() -> None:
    driver = BalloonDriver(STANDARD).start(features=VERSION_1)
    board = driver.board
    assert 2 <= driver.msix_vectors <= 0x800
    for vector in [*range(driver.msix_vectors), NO_VECTOR]:
        expected = [] if vector == NO_VECTOR else [vector]
        driver.write_common("config_msix_vector", vector)
        assert driver.read_common("config_msix_vector") == vector
        board.msi.triggered.clear()
        board.balloon.set_target(5)
        assert board.msi.triggered == expected
        for queue in (INFLATE, DEFLATE):
            driver.write_common("queue_select", queue)
            driver.write_common("queue_msix_vector", vector)
            assert driver.read_common("queue_msix_vector") == vector
            board.msi.triggered.clear()
            assert len(driver.send(queue, [pfn_array([1])])) == 1
            assert board.msi.triggered == expected


@pytest.mark.conformance("4.1.5.3.1-1")
def test_an_unmapped_queue_does_not_interrupt() -> None:
    driver = BalloonDriver(STANDARD).start()
    driver.write_common("queue_select", INFLATE)
    driver.write_common("queue_msix_vector", NO_VECTOR)
    assert len(driver.send(INFLATE, [pfn_array([1])])) == 1
    assert driver.board.msi.triggered == []
    assert driver.board.line.level is False
    assert not interrupt_status(driver)


@pytest.mark.conformance("4.1.4.5.1-2", "4.1.4.5.1-3")
@pytest.mark.parametrize("msix", [False, True])
def test_isr_status_is_set_before_the_driver_is_interrupted(msix: bool) -> None:
    driver = BalloonDriver(STANDARD).start(msix=msix)
    board = driver.board
    interrupts = board.transport.interrupts
    seen: list[int] = []
    board.msi.trigger = lambda vector: seen.append(interrupts.isr_status)  # type: ignore[method-assign]
    board.line.set_level = lambda level: seen.append(interrupts.isr_status)  # type: ignore[method-assign]
    board.balloon.set_target(1)
    driver.read_isr()
    driver.send(INFLATE, [pfn_array([1])])
    driver.read_isr()
    # The line is also deasserted, when ISR status has become 0.
    assert seen == ([2, 0] if msix else [2, 0, 1, 0])


@pytest.mark.conformance("4.1.4.5.1-4")
def test_the_interrupt_status_bit_is_the_or_of_isr_status_while_msix_is_off() -> None:
    driver = BalloonDriver(STANDARD).start()
    line = driver.board.line
    driver.board.balloon.set_target(1)
    assert not line.level, "MSI-X has taken the place of INTx"
    turn_msix(driver, False)
    assert interrupt_status(driver), "the configuration bit of ISR status is set"
    assert line.level
    turn_msix(driver, True)
    assert not line.level
    turn_msix(driver, False)
    assert line.level
    assert driver.read_isr() == 2
    assert not line.level
    assert not interrupt_status(driver)
