# SPDX-License-Identifier: Apache-2.0
"""Requirements of VIRTIO 1.2 on a memory balloon (5.5) that no other test covers."""

import struct
from itertools import permutations

import pytest

from devices.balloon import features
from devices.balloon.dialects import STANDARD
from devices.balloon.stats import StatsReport
from devices.testing.balloon.driver import DEFLATE, INFLATE, STATS, BalloonDriver
from devices.testing.balloon.requests import pfn_array, stats_payload
from devices.testing.driver import ALL_FEATURES, VERSION_1
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES

HINTS, REPORTS = 3, 4
COMMAND_ID, POISON_VAL = 8, 12
EVERYTHING = STANDARD.features.known


def send_writable_page(driver: BalloonDriver, queue: int, gpa: int) -> None:
    driver.queues[queue].add(writable_segments=[(gpa, PAGE_BYTES)])
    driver.notify(queue)
    driver.board.serve()


@pytest.mark.conformance("5.5.2-1")
def test_queue_indices_are_those_of_the_specification() -> None:
    driver = BalloonDriver(STANDARD, offered=EVERYTHING).start()
    balloon = driver.board.balloon
    assert driver.existing_queues() == [0, 1, 2, 3, 4]
    driver.send(0, [pfn_array([1])])
    driver.send(1, [pfn_array([1, 2])])
    assert (balloon.counters.inflate.pages, balloon.counters.deflate.pages) == (1, 2)
    reports: list[StatsReport] = []
    balloon.stats.report_received.add(reports.append)
    driver.send(2, [stats_payload([(4, 77)])])
    assert [report.values for report in reports] == [{4: 77}]
    balloon.hinting.start(lambda ending: None)
    driver.send(3, [struct.pack("<I", driver.read_config(COMMAND_ID))])
    send_writable_page(driver, 3, 3 * MIB)
    assert list(balloon.hinting.pages) == [(3 * MIB // PAGE_BYTES, 1)]
    send_writable_page(driver, 4, 4 * MIB)
    assert balloon.counters.reported_pages == 1


@pytest.mark.conformance("5.5.2-2")
@pytest.mark.parametrize(
    ("declined", "number"),
    [(features.STATS_VQ, STATS), (features.FREE_PAGE_HINT, HINTS), (features.REPORTING, REPORTS)],
)
@pytest.mark.parametrize("by", ["driver", "device"])
def test_further_queues_exist_only_with_their_features(declined: int, number: int, by: str) -> None:
    later = sum(bit for bit in (1 << 1, 1 << 3, 1 << 5) if bit > declined)
    rest = EVERYTHING & ~declined & ~later
    if by == "driver":
        wanted = ALL_FEATURES & ~declined & ~later
        driver = BalloonDriver(STANDARD, offered=EVERYTHING).start(features=wanted)
    else:
        driver = BalloonDriver(STANDARD, offered=rest).start()
    assert driver.existing_queues() == list(range(number))
    driver.negotiate(ALL_FEATURES & ~later)
    assert (number in driver.existing_queues()) == (by == "driver")


@pytest.mark.conformance("5.5.4-1", "5.5.4-2", "5.5.4-3")
def test_the_fields_of_the_configuration_space() -> None:
    driver = BalloonDriver(STANDARD, offered=EVERYTHING).start()
    balloon = driver.board.balloon
    balloon.set_target(0x1000)
    balloon.hinting.start(lambda ending: None)
    command_id = driver.read_config(COMMAND_ID)
    assert command_id >= 2
    for offset in range(0, 16, 4):
        driver.write_config(offset, 4, 0x0A0B_0C0D)
    fields = [driver.read_config(offset) for offset in range(0, 16, 4)]
    assert fields == [0x1000, 0x0A0B_0C0D, command_id, 0x0A0B_0C0D]


@pytest.mark.conformance("5.5.4-1")
def test_num_pages_and_actual_need_no_feature() -> None:
    driver = BalloonDriver(STANDARD, offered=0).start(features=VERSION_1)
    driver.board.balloon.set_target(3)
    assert driver.read_config(0) == 3
    driver.write_config(4, 4, 2)
    assert driver.board.balloon.actual == driver.read_config(4) == 2


@pytest.mark.conformance("5.5.6.2-1")
def test_pages_of_a_completed_inflate_request_are_not_changed() -> None:
    driver = BalloonDriver(STANDARD).start()
    driver.send(INFLATE, [pfn_array([100])])
    driver.memory.write(100 * PAGE_BYTES, b"the guest's again")
    driver.send(INFLATE, [pfn_array([101])])
    driver.send(DEFLATE, [pfn_array([100])])
    assert driver.memory.read(100 * PAGE_BYTES, 17) == b"the guest's again"


@pytest.mark.conformance("5.5.6.3.2-1", "5.5.6.3.2-2")
def test_statistics_are_accepted_in_any_order_with_unknown_tags() -> None:
    entries = [(4, 10), (0, 20), (999, 30), (5, 40)]
    for order in permutations(entries):
        driver = BalloonDriver(STANDARD).start()
        reports: list[StatsReport] = []
        driver.board.balloon.stats.report_received.add(reports.append)
        driver.send(STATS, [stats_payload(order)])
        known = {name: value for name, value in reports[0].known.items() if value is not None}
        assert known == {
            "stat-free-memory": 10,
            "stat-swap-in": 20,
            "stat-total-memory": 40,
        }
        assert "balloon.bad_payload" not in driver.board.tracer.names


@pytest.mark.conformance("5.5.6.5.2-1", "5.5.6.5.2-3")
def test_hints_before_the_first_command_are_ignored() -> None:
    driver = BalloonDriver(STANDARD, offered=EVERYTHING).start()
    assert driver.read_config(COMMAND_ID) == 0
    send_writable_page(driver, HINTS, 3 * MIB)
    driver.send(HINTS, [struct.pack("<I", 0)])
    assert not driver.board.balloon.hinting.pages


@pytest.mark.conformance("5.5.6.5.2-5")
def test_hinted_pages_are_not_changed_before_or_after_done() -> None:
    driver = BalloonDriver(STANDARD, offered=EVERYTHING).start()
    hinting = driver.board.balloon.hinting
    driver.memory.write(3 * MIB, b"hinted")
    hinting.start(lambda ending: None)
    driver.send(HINTS, [struct.pack("<I", driver.read_config(COMMAND_ID))])
    send_writable_page(driver, HINTS, 3 * MIB)
    assert hinting.pages
    hinting.finish()
    assert driver.read_config(COMMAND_ID) == 1
    send_writable_page(driver, HINTS, 3 * MIB)
    assert driver.memory.read(3 * MIB, 6) == b"hinted"
    assert driver.board.ram.discarded == []
