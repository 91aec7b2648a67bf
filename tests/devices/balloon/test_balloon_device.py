# SPDX-License-Identifier: Apache-2.0
"""The balloon, used through registers: memory is freed, bad requests change nothing."""

import ctypes

import pytest

from devices.balloon import features
from devices.balloon.dialects import BITMAP, HYBRID, RANGES, STANDARD, Dialect
from devices.testing.balloon.driver import (
    DEFLATE,
    INFLATE,
    STATS,
    BalloonBoard,
    BalloonDriver,
    page_request,
)
from devices.testing.balloon.requests import bitmap_request, pfn_array
from devices.testing.driver import (
    ACKNOWLEDGE,
    DEVICE_CFG,
    DRIVER,
    DRIVER_OK,
    FEATURES_OK,
    RING_RESET,
    VERSION_1,
)
from devices.testing.ram import AnonymousRam
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns

EACH_DIALECT = pytest.mark.parametrize(
    "dialect", [STANDARD, BITMAP, HYBRID, RANGES], ids=lambda each: each.name
)
HOLE_GPA = 16 * MIB
HIGH_GPA = 4096 * MIB


def resident_bytes(ram: AnonymousRam) -> int:
    """Return the resident bytes of the first region, from this process's page map."""
    area = ram.maps[0][1]
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    first, count = address // PAGE_BYTES, len(area) // PAGE_BYTES
    with open("/proc/self/pagemap", "rb") as pagemap:
        pagemap.seek(first * 8)
        entries = pagemap.read(count * 8)
    return PAGE_BYTES * sum(entries[i * 8 + 7] >> 7 for i in range(count))


@pytest.mark.conformance("5.5.6.2-1")
@EACH_DIALECT
def test_inflate_discards_the_named_pages_and_no_others(dialect: Dialect) -> None:
    driver = BalloonDriver(dialect).start()
    ram = driver.board.ram
    ram.memory.write(0, b"\xa5" * (16 * MIB))
    before = resident_bytes(ram)
    pfns = [*range(256, 512), *range(1000, 2000, 2)]
    requests = [
        page_request(dialect, pfns[start : start + 256]) for start in range(0, len(pfns), 256)
    ]
    for each_request in requests:
        used = driver.send(INFLATE, each_request)
        assert [each.length for each in used] == [0]
    # Rings and requests of the driver take a few more pages.
    assert before - resident_bytes(ram) > (len(pfns) - 16) * PAGE_BYTES
    page = {True: bytes(PAGE_BYTES), False: b"\xa5" * PAGE_BYTES}
    gone = set(pfns)
    for pfn in range(16 * MIB // PAGE_BYTES):
        assert ram.memory.read(pfn * PAGE_BYTES, PAGE_BYTES) == page[pfn in gone], pfn
    counters = driver.board.balloon.counters
    assert counters.inflate.pages == len(pfns)
    assert counters.inflate.bytes == sum(len(part) for parts in requests for part in parts)
    assert counters.discarded_bytes == len(pfns) * PAGE_BYTES
    assert counters.interrupts > 0


@pytest.mark.conformance("5.5.6.2-1")
@EACH_DIALECT
def test_inflate_returns_the_buffer_after_the_discard(dialect: Dialect) -> None:
    driver = BalloonDriver(dialect).start()
    ram = driver.board.ram
    ram.memory.write(PAGE_BYTES, b"x")
    seen = []

    def discard(runs: PageRuns) -> int:
        seen.append((list(runs), driver.queues[INFLATE].used_idx))
        return 0

    ram.discard = discard  # type: ignore[method-assign]
    driver.send(INFLATE, page_request(dialect, [1]))
    assert seen == [([(1, 1)], 0)]


@EACH_DIALECT
def test_deflate_is_counted_and_discards_nothing(dialect: Dialect) -> None:
    driver = BalloonDriver(dialect).start()
    driver.memory.write(5 * PAGE_BYTES, b"kept")
    assert driver.send(DEFLATE, page_request(dialect, [5, 6]))[0].length == 0
    assert driver.memory.read(5 * PAGE_BYTES, 4) == b"kept"
    counters = driver.board.balloon.counters
    assert (counters.deflate.requests, counters.deflate.pages) == (1, 2)
    assert counters.inflate.requests == counters.discarded_bytes == 0
    assert driver.board.ram.discarded == []


@EACH_DIALECT
@pytest.mark.parametrize("queue", [INFLATE, DEFLATE])
def test_a_request_with_a_page_outside_ram_is_refused_whole(dialect: Dialect, queue: int) -> None:
    ram = AnonymousRam((0, HOLE_GPA), (32 * MIB, 32 * MIB))
    driver = BalloonDriver(dialect, ram=ram).start()
    last = HOLE_GPA // PAGE_BYTES - 1
    ram.memory.write(last * PAGE_BYTES, b"kept")
    assert driver.send(queue, page_request(dialect, [last, last + 1]))[0].length == 0
    assert ram.memory.read(last * PAGE_BYTES, 4) == b"kept"
    assert ram.discarded == []
    traffic = getattr(driver.board.balloon.counters, "deflate" if queue else "inflate")
    assert (traffic.requests, traffic.pages, traffic.bad_payloads) == (1, 0, 1)
    name, fields = driver.board.tracer.events[-1]
    assert name == "balloon.bad_payload"
    assert fields["why"] == "1 of 2 pages are not RAM"
    # The queue still works.
    driver.send(queue, page_request(dialect, [last]))
    traffic = getattr(driver.board.balloon.counters, "deflate" if queue else "inflate")
    assert (traffic.requests, traffic.pages, traffic.bad_payloads) == (2, 1, 1)


@EACH_DIALECT
def test_a_request_may_span_a_hole_in_ram(dialect: Dialect) -> None:
    ram = AnonymousRam((0, HOLE_GPA), (32 * MIB, 32 * MIB))
    driver = BalloonDriver(dialect, ram=ram).start()
    pfns = [HOLE_GPA // PAGE_BYTES - 1, 60 * MIB // PAGE_BYTES]
    driver.send(INFLATE, page_request(dialect, pfns))
    assert driver.board.balloon.counters.inflate.pages == 2


def test_pages_above_4_gib_are_discarded() -> None:
    ram = AnonymousRam((0, 64 * MIB), (HIGH_GPA, 4 * MIB))
    driver = BalloonDriver(BITMAP, ram=ram).start()
    ram.memory.write(HIGH_GPA, b"gone")
    driver.send(INFLATE, page_request(BITMAP, [HIGH_GPA // PAGE_BYTES]))
    assert ram.memory.read(HIGH_GPA, 4) == bytes(4)


def test_only_whole_host_pages_are_discarded() -> None:
    driver = BalloonDriver(BITMAP, ram=AnonymousRam((0, 64 * MIB), host_page_pages=16)).start()
    driver.send(INFLATE, page_request(BITMAP, range(8, 40)))
    assert [list(runs) for runs in driver.board.ram.discarded] == [[(16, 16)]]
    counters = driver.board.balloon.counters
    assert counters.inflate.pages == 32
    assert counters.discarded_bytes == 16 * PAGE_BYTES


@pytest.mark.parametrize("indirect", [False, True])
def test_a_bitmap_may_span_many_descriptors(indirect: bool) -> None:
    driver = BalloonDriver(BITMAP).start()
    pieces = bitmap_request(range(64, 64 + 4096))
    header, bits = pieces[0], pieces[1]
    split = [header[:5], header[5:], *(bits[i : i + 16] for i in range(0, len(bits), 16))]
    driver.send(INFLATE, split, indirect=indirect)
    assert driver.board.balloon.counters.inflate.pages == 4096


def test_a_large_request_is_the_last_of_its_call() -> None:
    driver = BalloonDriver(BITMAP).start()
    queue = driver.queues[INFLATE]
    for _ in range(3):
        queue.add(bitmap_request([1], bmap_len=65536, supplied_bytes=65536))
    driver.notify(INFLATE)
    assert driver.board.serve() == 3
    assert len(queue.take_used()) == 3


@EACH_DIALECT
def test_an_overlong_request_is_returned_unread(dialect: Dialect) -> None:
    driver = BalloonDriver(dialect).start()
    piece = bytes(64 * 1024)
    count = dialect.max_request_bytes // len(piece) + 1
    assert driver.send(INFLATE, [piece] * count)[0].length == 0
    assert "too long" in str(driver.board.tracer.events[-1][1]["why"])
    assert driver.board.balloon.counters.inflate.bad_payloads == 1
    assert driver.board.ram.discarded == []


@EACH_DIALECT
def test_a_request_without_readable_bytes_is_refused(dialect: Dialect) -> None:
    driver = BalloonDriver(dialect).start()
    queue = driver.queues[INFLATE]
    queue.add([], [64])
    driver.notify(INFLATE)
    driver.board.serve()
    assert [used.length for used in queue.take_used()] == [0]
    assert driver.board.balloon.counters.inflate.bad_payloads == 1


def test_the_bitmap_dialect_refuses_pfn_arrays() -> None:
    """Bit 3 has a meaning in both dialects; a driver of the wrong one must lose no memory."""
    driver = BalloonDriver(BITMAP).start()
    assert driver.send(INFLATE, [pfn_array(range(256))])[0].length == 0
    assert driver.board.ram.discarded == []
    assert driver.board.balloon.counters.inflate.bad_payloads == 1


def test_a_standard_driver_discards_nothing_in_the_bitmap_dialect() -> None:
    """It accepts bit 3 as FREE_PAGE_HINT, reads no command id, and its arrays are refused."""
    driver = BalloonDriver(BITMAP).start()
    driver.write_config(12, 4, 0xAAAA_AAAA)  # poison_val, if the guest poisons free pages
    assert driver.structures[DEVICE_CFG].length == 16, "room for that"
    assert driver.read_config(8, 8) == 0, "STOP; and no poison_val"
    for first in range(0, 4096, 256):
        (used,) = driver.send(INFLATE, [pfn_array(range(first, first + 256))])
        assert used.length == 0
    assert driver.board.ram.discarded == []
    assert driver.board.balloon.counters.inflate.bad_payloads == 16


def test_features_ok_is_refused_without_page_bitmap() -> None:
    """3.1.1: FEATURES_OK does not stay set, so the driver stops before it inflates."""
    driver = BalloonDriver(BITMAP).probe()
    for accepted in (VERSION_1, VERSION_1 | features.STATS_VQ):
        driver.reset()
        driver.add_status(ACKNOWLEDGE)
        driver.add_status(DRIVER)
        driver.write_driver_features(accepted)
        assert not driver.add_status(FEATURES_OK) & FEATURES_OK
        assert driver.board.tracer.events[-1][1]["why"] == "PAGE_BITMAP was not accepted"
    driver.write_driver_features(VERSION_1 | features.PAGE_BITMAP)
    assert driver.add_status(FEATURES_OK) & FEATURES_OK


# Target and actual.


@pytest.mark.conformance("3.2.1-1", "5.5.4-1")
@EACH_DIALECT
def test_a_new_target_notifies_the_driver(dialect: Dialect) -> None:
    driver = BalloonDriver(dialect).start()
    balloon = driver.board.balloon
    balloon.set_target(1234)
    assert driver.board.msi.triggered[-1] == 0
    assert driver.read_config(0) == balloon.num_pages == 1234
    driver.write_config(0, 4, 9)
    assert driver.read_config(0) == 1234, "only the device changes num_pages"


@pytest.mark.conformance("2.5.2-1")
def test_a_target_before_driver_ok_is_kept_without_a_notification() -> None:
    driver = BalloonDriver(STANDARD).probe()
    driver.board.balloon.set_target(77)
    assert driver.board.line.level is False
    assert driver.read_config(0) == 77, "2.5.3: readable before FEATURES_OK"
    driver.start()
    assert driver.read_config(0) == 77


@pytest.mark.parametrize("pages", [-1, 64 * MIB // PAGE_BYTES + 1])
def test_a_target_outside_ram_is_refused(pages: int) -> None:
    board = BalloonBoard(STANDARD)
    with pytest.raises(ValueError, match="a balloon of"):
        board.balloon.set_target(pages)
    board.balloon.set_target(64 * MIB // PAGE_BYTES)


@EACH_DIALECT
def test_actual_is_reported_and_limited_to_ram(dialect: Dialect) -> None:
    driver = BalloonDriver(dialect).start()
    board = driver.board
    for written, actual in ((10, 10), (0xFFFF_FFFF, 64 * MIB // PAGE_BYTES), (0, 0)):
        driver.write_config(4, 4, written)
        assert driver.read_config(4) == written
        assert board.balloon.actual == board.actuals[-1] == actual


def test_a_reset_clears_actual() -> None:
    driver = BalloonDriver(STANDARD).start()
    driver.write_config(4, 4, 10)
    driver.board.balloon.set_target(20)
    driver.reset()
    assert driver.board.actuals == [10, 0]
    assert driver.board.balloon.actual == 0
    assert driver.board.balloon.num_pages == 20


@pytest.mark.conformance("2.5-1")
def test_config_space_takes_any_access_size() -> None:
    driver = BalloonDriver(STANDARD).start()
    driver.board.balloon.set_target(0x3456)
    assert driver.read_config(0, 1) == 0x56
    assert driver.read_config(1, 1) == 0x34
    for i, byte in enumerate((0x21, 0x43, 0, 0)):
        driver.write_config(4 + i, 1, byte)
    assert driver.read_config(0, 8) == 0x4321 << 32 | 0x3456


@pytest.mark.parametrize("cmd_id", [0, features.FREE_PAGE_HINT])
@pytest.mark.parametrize("poison", [0, features.PAGE_POISON])
def test_config_fields_exist_with_their_features(cmd_id: int, poison: int) -> None:
    driver = BalloonDriver(STANDARD, offered=cmd_id | poison).probe()
    assert driver.structures[DEVICE_CFG].length == 16, "struct virtio_balloon_config"
    driver.start()
    driver.write_config(8, 8, 0xAAAA_AAAA << 32 | 0x55)
    assert driver.read_config(8) == 0, "free_page_hint_cmd_id is read-only to the driver (5.5.4)"
    assert driver.read_config(12) == (0xAAAA_AAAA if poison else 0)
    driver.reset()
    assert driver.read_config(12) == 0


# Features and the statistics queue.


@EACH_DIALECT
def test_the_chosen_features_are_offered(dialect: Dialect) -> None:
    for chosen in (None, dialect.features.known, dialect.features.fixed):
        offered = BalloonDriver(dialect, offered=chosen).probe().read_device_features()
        transport = RING_RESET | VERSION_1 | 0b11 << 28
        expected = dialect.features.default if chosen is None else chosen
        assert offered == expected | transport


def test_the_stats_queue_keeps_one_buffer_and_returns_a_second() -> None:
    driver = BalloonDriver(BITMAP).start()
    assert driver.send(STATS, [bytes(10)]) == []
    again = driver.send(STATS, [bytes(10)])
    assert [used.length for used in again] == [0]
    driver.start()
    assert driver.send(STATS, [bytes(10)]) == []


def test_the_stats_queue_serves_nothing_without_its_feature() -> None:
    driver = BalloonDriver(BITMAP).probe()
    driver.reset()
    driver.add_status(ACKNOWLEDGE)
    driver.add_status(DRIVER)
    driver.set_up_queue(STATS)  # too early: the queue does not exist once features are negotiated
    driver.write_driver_features(VERSION_1 | features.PAGE_BITMAP)
    driver.add_status(FEATURES_OK)
    assert driver.existing_queues() == [INFLATE, DEFLATE]
    driver.add_status(DRIVER_OK)
    assert driver.send(STATS, [bytes(10)])[0].length == 0
    assert driver.board.tracer.events[-1][1]["why"] == "the feature of this queue was not accepted"


def test_counters_are_a_snapshot() -> None:
    driver = BalloonDriver(STANDARD).start()
    before = driver.board.balloon.counters
    driver.send(INFLATE, [pfn_array([1])])
    assert before.inflate.requests == 0
    assert driver.board.balloon.counters.inflate.requests == 1
