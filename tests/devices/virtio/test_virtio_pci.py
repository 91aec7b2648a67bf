# SPDX-License-Identifier: Apache-2.0
"""The PCI transport, used through registers only (VIRTIO 1.2, section 4.1)."""

import pytest

from devices.balloon.dialects import STANDARD
from devices.testing.balloon.driver import DEFLATE, INFLATE, BalloonDriver
from devices.testing.balloon.requests import pfn_array
from devices.testing.board import APERTURE
from devices.testing.driver import (
    ACKNOWLEDGE,
    COMMON,
    COMMON_CFG,
    DEVICE_CFG,
    DRIVER,
    DRIVER_OK,
    FAILED,
    FEATURES_OK,
    ISR_CFG,
    NO_VECTOR,
    NOTIFY_CFG,
    PCI_CFG,
    VERSION_1,
)
from pyvmm.units import MIB


@pytest.mark.conformance("4.1.2.1-1", "4.1.2.1-2", "4.1.2.1-4", "4.1.2.1-5", "4.1.2.1-6", "5.5.1-1")
def test_pci_identity() -> None:
    driver = BalloonDriver(STANDARD).probe()
    assert driver.read_pci(0x00, 2) == 0x1AF4
    assert driver.read_pci(0x02, 2) == 0x1040 + 5
    assert driver.read_pci(0x08, 1) >= 1
    assert driver.read_pci(0x09, 1) | driver.read_pci(0x0A, 2) << 8 == 0x00FF00
    assert driver.read_pci(0x2C, 2) == 0x1AF4
    assert driver.read_pci(0x2E, 2) >= 0x40
    assert driver.read_pci(0x3D, 1) == 1


@pytest.mark.conformance(
    "4.1.4.2-1",
    "4.1.4.3.1-2",
    "4.1.4.4.1-1",
    "4.1.4.4.1-3",
    "4.1.4.4.1-4",
    "4.1.4.5.1-1",
    "4.1.4.6-1",
    "4.1.4.9.1-1",
    "4.1.5.1.2.1-2",
    "4.1.5.1.2.1-3",
)
def test_structures_are_found_and_fit_their_bar() -> None:
    driver = BalloonDriver(STANDARD).probe()
    assert set(driver.structures) == {COMMON_CFG, NOTIFY_CFG, ISR_CFG, DEVICE_CFG, PCI_CFG}
    assert driver.structures[COMMON_CFG].length >= 56
    assert driver.structures[DEVICE_CFG].length >= 8
    # 4.1.4.4.1: every queue's notification lies within the structure.
    assert driver.notify_multiplier == 4
    for queue in range(driver.read_common("num_queues")):
        driver.write_common("queue_select", queue)
        offset = driver.read_common("queue_notify_off") * driver.notify_multiplier
        assert driver.structures[NOTIFY_CFG].length >= offset + 2
    assert driver.read_pci(driver.structures[NOTIFY_CFG].capability + 2, 1) == 20
    assert driver.read_pci(driver.structures[PCI_CFG].capability + 2, 1) == 20
    assert driver.msix_vectors == driver.read_common("num_queues") + 1


@pytest.mark.conformance("4.1.4.3.1-3", "4.1.4.3.1-4", "6.2-1")
def test_feature_windows() -> None:
    driver = BalloonDriver(STANDARD).probe()
    assert driver.read_device_features() & VERSION_1
    for select in (2, 3, 0xFFFF_FFFF):
        driver.write_common("device_feature_select", select)
        assert driver.read_common("device_feature") == 0
        driver.write_common("driver_feature_select", select)
        driver.write_common("driver_feature", 0xFFFF_FFFF)
        assert driver.read_common("driver_feature") == 0
    driver.write_common("driver_feature_select", 1)
    driver.write_common("driver_feature", 1)
    assert driver.read_common("driver_feature") == 1


@pytest.mark.conformance("2.2.2-3", "6.2-2")
@pytest.mark.parametrize("accepted", [0, 1 << 28, VERSION_1 | 1 << 60, VERSION_1 | 1 << 5])
def test_features_ok_is_refused_for_features_not_offered_or_without_version_1(
    accepted: int,
) -> None:
    driver = BalloonDriver(STANDARD).probe()
    driver.write_common("device_status", ACKNOWLEDGE | DRIVER)
    driver.write_driver_features(accepted)
    assert driver.add_status(FEATURES_OK) == ACKNOWLEDGE | DRIVER
    assert "balloon.features_refused" in driver.board.tracer.names
    # The driver may try again with other features.
    driver.write_driver_features(VERSION_1)
    assert driver.add_status(FEATURES_OK) & FEATURES_OK


def test_features_are_frozen_by_features_ok() -> None:
    driver = BalloonDriver(STANDARD).probe()
    driver.negotiate()
    before = driver.board.device.accepted
    driver.write_driver_features(0)
    assert driver.board.device.accepted == before


def test_out_of_order_status_is_ignored_and_traced() -> None:
    driver = BalloonDriver(STANDARD).probe()
    driver.write_common("device_status", DRIVER_OK)
    assert driver.status == 0
    assert driver.board.tracer.events == [
        ("balloon.status_refused", {"count": 1, "status": 0, "written": DRIVER_OK})
    ]


@pytest.mark.conformance("4.1.4.3.1-14")
def test_queue_registers_beyond_the_last_queue() -> None:
    driver = BalloonDriver(STANDARD).probe()
    driver.write_common("queue_select", driver.read_common("num_queues"))
    for name, value in (
        ("queue_size", 0),
        ("queue_enable", 0),
        ("queue_desc_lo", 0),
        ("queue_msix_vector", NO_VECTOR),
    ):
        driver.write_common(name, 1)
        assert driver.read_common(name) == value


def test_queue_configuration_is_frozen_while_enabled() -> None:
    driver = BalloonDriver(STANDARD).start()
    driver.write_common("queue_select", INFLATE)
    names = ("queue_size", "queue_desc_lo", "queue_driver_hi", "queue_device_lo", "queue_enable")
    before = [driver.read_common(name) for name in names]
    for name in names:
        driver.write_common(name, 0)
    assert [driver.read_common(name) for name in names] == before


@pytest.mark.parametrize("value", [0, 2, 0xFFFF])
def test_only_1_enables_a_queue(value: int) -> None:
    driver = BalloonDriver(STANDARD).probe()
    driver.write_common("queue_enable", value)
    assert driver.read_common("queue_enable") == 0


@pytest.mark.conformance("4.1.4.3.1-15")
@pytest.mark.parametrize("size", [0, 3, 100, 256, 0xFFFF])
def test_queue_size_must_be_a_power_of_two_within_the_offer(size: int) -> None:
    driver = BalloonDriver(STANDARD).probe()
    assert driver.read_common("queue_size") == 128
    driver.write_common("queue_size", size)
    assert driver.read_common("queue_size") == 128
    driver.write_common("queue_size", 16)
    assert driver.read_common("queue_size") == 16


@pytest.mark.conformance("4.1.3.2-1")
def test_64_bit_fields_as_one_access_and_as_halves() -> None:
    driver = BalloonDriver(STANDARD).probe()
    gpa = driver.structure_gpa(COMMON_CFG, COMMON["queue_desc_lo"][0])
    driver.board.mmio.write(gpa, 8, 0x1122_3344_5566_7788)
    assert driver.read_common("queue_desc_lo") == 0x5566_7788
    driver.write_common("queue_desc_hi", 0xAABB_CCDD)
    assert driver.board.mmio.read(gpa, 8) == 0xAABB_CCDD_5566_7788


@pytest.mark.conformance("4.1.5.1.2.1-6", "4.1.5.1.2.1-9")
def test_vector_mapping() -> None:
    driver = BalloonDriver(STANDARD).probe()
    for name in ("config_msix_vector", "queue_msix_vector"):
        assert driver.read_common(name) == NO_VECTOR
        driver.write_common(name, driver.msix_vectors - 1)
        assert driver.read_common(name) == driver.msix_vectors - 1
        driver.write_common(name, driver.msix_vectors)
        assert driver.read_common(name) == NO_VECTOR


@pytest.mark.conformance("2.4.1-1", "4.1.4.3.1-7", "4.1.4.3.1-8", "4.1.5.1.2.1-7")
def test_a_reset_clears_everything() -> None:
    driver = BalloonDriver(STANDARD).start()
    board = driver.board
    board.balloon.set_target(10)
    assert board.notifiers.assigned
    driver.reset()
    assert board.notifiers.assigned == {}
    assert driver.read_isr() == 0
    assert driver.read_common("config_msix_vector") == NO_VECTOR
    for queue in (INFLATE, DEFLATE):
        driver.write_common("queue_select", queue)
        assert driver.read_common("queue_size") == 128
        assert driver.read_common("queue_enable") == 0
        assert driver.read_common("queue_msix_vector") == NO_VECTOR
        assert driver.read_common("queue_desc_lo") == 0
    assert board.device.accepted == 0
    # It can be driven again.
    driver.start()
    assert driver.send(INFLATE, [pfn_array([1])])[0].length == 0
    assert board.balloon.counters.inflate.pages == 1


@pytest.mark.conformance("3.3-1")
def test_host_notifiers_follow_the_bar_and_the_queues() -> None:
    driver = BalloonDriver(STANDARD).probe()
    notifiers = driver.board.notifiers
    driver.negotiate()
    driver.set_up_queue(DEFLATE)
    assert notifiers.assigned == {}, "not before DRIVER_OK"
    driver.add_status(DRIVER_OK)
    assert notifiers.assigned == {DEFLATE: driver.structure_gpa(NOTIFY_CFG, 4 * DEFLATE)}
    assert notifiers.notified == [DEFLATE], "buffers may have been waiting"
    driver.write_pci(0x10, 4, APERTURE[0] + 8 * MIB)
    assert notifiers.assigned == {DEFLATE: APERTURE[0] + 8 * MIB + 0x3000 + 4}
    driver.write_pci(0x04, 2, 0b100)
    assert notifiers.assigned == {}
    driver.write_pci(0x04, 2, 0b110)
    assert DEFLATE in notifiers.assigned
    driver.bars[0] = APERTURE[0] + 8 * MIB
    driver.add_status(FAILED)
    assert notifiers.assigned == {}


def test_queue_enabled_after_driver_ok_works() -> None:
    driver = BalloonDriver(STANDARD).start(queues=[INFLATE])
    driver.set_up_queue(DEFLATE)
    driver.send(DEFLATE, [pfn_array([7])])
    assert driver.board.balloon.counters.deflate.pages == 1


@pytest.mark.conformance("2.1.2-1", "3.1-1")
def test_buffers_from_before_driver_ok_are_served_after_it() -> None:
    driver = BalloonDriver(STANDARD).probe()
    driver.negotiate()
    queue = driver.set_up_queue(INFLATE)
    queue.add([pfn_array([1])])
    driver.notify(INFLATE)
    driver.board.serve()
    assert queue.take_used() == []
    driver.add_status(DRIVER_OK)
    driver.board.serve()
    assert len(queue.take_used()) == 1


def test_no_memory_access_without_bus_mastering() -> None:
    driver = BalloonDriver(STANDARD).start()
    driver.write_pci(0x04, 2, 0b010)
    assert driver.send(INFLATE, [pfn_array([1])]) == []
    driver.board.balloon.set_target(1)
    assert driver.board.msi.triggered == []
    driver.write_pci(0x04, 2, 0b110)
    driver.notify(INFLATE)
    driver.board.serve()
    assert len(driver.queues[INFLATE].take_used()) == 1


# Configuration generation, 4.1.4.3.1.


@pytest.mark.conformance("2.5-2", "4.1.4.3.1-6")
def test_config_generation_changes_between_a_stale_and_a_fresh_read() -> None:
    driver = BalloonDriver(STANDARD).start()
    balloon = driver.board.balloon
    for target in range(1, 600):
        before = driver.read_common("config_generation")
        balloon.set_target(target)
        assert driver.read_config(0) == target
        assert driver.read_common("config_generation") != before
        assert driver.read_common("config_generation") == driver.read_common("config_generation")
