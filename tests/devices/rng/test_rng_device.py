# SPDX-License-Identifier: Apache-2.0
"""The entropy device on a board: bytes, rate limit, bad requests and saved state."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.rng.device import MAX_FILL_BYTES, QUEUE_SIZE
from devices.state import Fields, StateError
from devices.testing.driver import DEVICE_CFG, NEEDS_RESET
from devices.virtio.device import BYTES_PER_CALL
from pyvmm_native import PAGE_BYTES
from tests.devices.rng.rng_board import RAM_BYTES, REQUEST, SECOND_NS, RngBoard, RngDriver


def ascending(count: int) -> bytes:
    return bytes(index & 0xFF for index in range(count))


@pytest.mark.conformance("5.4.1-1", "5.4.2-1", "5.4.3-1", "4.1.4.6-1")
def test_identity_on_the_bus() -> None:
    driver = RngDriver(RngBoard())
    assert driver.read_pci(0, 4) == 0x1044_1AF4
    assert driver.existing_queues() == [REQUEST]
    assert driver.read_device_features() & 0xFF_FFFF == 0
    assert DEVICE_CFG not in driver.structures


@pytest.mark.conformance("5.4.6.2-1")
def test_a_buffer_is_filled_with_fresh_random_bytes() -> None:
    board = RngBoard()
    driver = RngDriver(board)
    driver.offer(64, 64, 1)
    first, second, one = driver.taken()
    assert len(first) == len(second) == 64
    assert first != second, "the odds of this are one in 2**512"
    assert len(one) == 1
    assert board.rng.supplied_bytes == 129
    assert board.msi.triggered == [1 + REQUEST]


def test_the_bytes_are_those_of_the_generator() -> None:
    driver = RngDriver(RngBoard(entropy=ascending))
    driver.offer(300)
    assert driver.taken() == [ascending(300)]


@pytest.mark.conformance("5.4.6.2-2")
def test_a_large_buffer_is_filled_in_part() -> None:
    board = RngBoard(entropy=ascending)
    driver = RngDriver(board)
    driver.offer(2 * MAX_FILL_BYTES)
    (used,) = driver.taken()
    assert len(used) == MAX_FILL_BYTES


def test_one_notification_costs_a_bounded_amount_of_work() -> None:
    asked: list[int] = []

    def counting(count: int) -> bytes:
        asked.append(count)
        return bytes(count)

    board = RngBoard(entropy=counting)
    driver = RngDriver(board)
    for _ in range(QUEUE_SIZE):
        driver.queues[REQUEST].add([], [2 * MAX_FILL_BYTES])
    driver.notify(REQUEST)
    assert board.notifiers.notified == [REQUEST]
    board.notifiers.notified.clear()
    assert board.transport.serve_queue(REQUEST), "there are more"
    assert sum(asked) <= BYTES_PER_CALL


@pytest.mark.parametrize(("readable", "writable"), [([b"x"], [8]), ([b"x"], []), ([b""], [])])
def test_a_malformed_request_is_returned_empty(readable: list[bytes], writable: list[int]) -> None:
    board = RngBoard()
    driver = RngDriver(board)
    driver.queues[REQUEST].add(readable, writable)
    driver.notify(REQUEST)
    board.serve()
    if driver.status & NEEDS_RESET:
        assert readable == [b""], "a descriptor of length 0 is a malformed chain"
        return
    (used,) = driver.queues[REQUEST].take_used()
    assert used.length == 0
    assert board.rng.queues[REQUEST].counters.bad_payloads == 1
    driver.offer(8)
    assert [len(data) for data in driver.taken()] == [8]


def test_a_buffer_outside_ram_breaks_the_device() -> None:
    board = RngBoard()
    driver = RngDriver(board)
    queue = driver.queues[REQUEST]
    queue.set_desc(0, RAM_BYTES, 8, 2)
    queue.set_avail_ring(0, 0)
    queue.set_avail_idx(1)
    driver.notify(REQUEST)
    board.serve()
    assert driver.status & NEEDS_RESET
    assert board.rng.supplied_bytes == 0


def test_a_buffer_that_is_offered_again_while_it_waits_breaks_the_device() -> None:
    board = RngBoard(bytes_per_s=1)
    driver = RngDriver(board)
    queue = driver.queues[REQUEST]
    queue.set_desc(0, queue.data_gpa, 8, 2)
    for slot in range(queue.size):
        queue.set_avail_ring(slot, 0)
    for index in range(1, 4 * queue.size):
        queue.set_avail_idx(index)
        driver.notify(REQUEST)
        board.serve()
        assert len(board.rng._waiting) <= queue.size
    assert driver.status & NEEDS_RESET


def test_the_limit_lets_one_second_through_and_then_the_rate() -> None:
    board = RngBoard(bytes_per_s=1000)
    driver = RngDriver(board)
    driver.offer(1000)
    assert [len(data) for data in driver.taken()] == [1000]
    driver.offer(100, 100)
    assert driver.taken() == []
    board.timers.advance(SECOND_NS // 10 - 1)
    assert driver.taken() == []
    board.timers.advance(1)
    assert [len(data) for data in driver.taken()] == [100]
    board.timers.advance(SECOND_NS // 10)
    assert [len(data) for data in driver.taken()] == [100]
    assert board.msi.triggered == [1 + REQUEST] * 3


def test_a_buffer_is_never_filled_in_part_to_save_time() -> None:
    board = RngBoard(bytes_per_s=1)
    driver = RngDriver(board)
    driver.offer(64, 1)
    board.timers.advance(62 * SECOND_NS)
    assert driver.taken() == []
    board.timers.advance(1 * SECOND_NS)
    assert [len(data) for data in driver.taken()] == [64]
    board.timers.advance(1 * SECOND_NS)
    assert [len(data) for data in driver.taken()] == [1]


def test_idle_time_is_credited_for_one_second_at_most() -> None:
    board = RngBoard(bytes_per_s=1000)
    driver = RngDriver(board)
    board.timers.advance(3600 * SECOND_NS)
    driver.offer(1000, 1)
    assert [len(data) for data in driver.taken()] == [1000]


def test_a_reset_drops_waiting_buffers_and_restores_no_credit() -> None:
    board = RngBoard(bytes_per_s=1000)
    driver = RngDriver(board)
    driver.offer(1000, 10)
    assert [len(data) for data in driver.taken()] == [1000]
    driver.reset()
    board.timers.advance(SECOND_NS // 200)
    assert board.rng.supplied_bytes == 1000
    driver.start()
    driver.offer(10)
    assert driver.taken() == []
    board.timers.advance(SECOND_NS // 200)
    assert [len(data) for data in driver.taken()] == [10]


def test_waiting_buffers_are_filled_when_bus_mastering_is_enabled_again() -> None:
    board = RngBoard(bytes_per_s=1000)
    driver = RngDriver(board)
    driver.offer(1000, 10)
    driver.taken()
    driver.write_pci(0x04, 2, 0b010)
    board.timers.advance(SECOND_NS)
    assert driver.taken() == []
    assert board.rng.save_own_state()["timer"] == {"remaining_ns": []}  # it does not poll
    driver.write_pci(0x04, 2, 0b110)
    assert driver.taken() == []  # the vCPU that writes the register does not fill them
    board.timers.advance(0)
    assert [len(data) for data in driver.taken()] == [10]


def test_enabling_bus_mastering_does_not_shorten_a_wait() -> None:
    board = RngBoard(bytes_per_s=1000)
    driver = RngDriver(board)
    driver.offer(1000, 10)
    driver.taken()
    driver.write_pci(0x04, 2, 0b110)
    board.timers.advance(SECOND_NS // 100 - 1)
    assert driver.taken() == []
    board.timers.advance(1)
    assert [len(data) for data in driver.taken()] == [10]


def test_buffers_in_flight_and_the_deadline_are_restored() -> None:
    board = RngBoard(bytes_per_s=1000)
    driver = RngDriver(board)
    driver.offer(1000, 50, 50)
    driver.taken()
    board.timers.advance(SECOND_NS // 25)
    saved = board.transport.save_state()

    new = RngBoard(bytes_per_s=1000, ram=board.ram)
    new.transport.restore_state(Fields("rng", saved))
    driver.board = new
    new.serve()
    new.timers.advance(SECOND_NS // 100 - 1)
    assert driver.taken() == []
    new.timers.advance(1)
    assert [len(data) for data in driver.taken()] == [50]
    new.timers.advance(SECOND_NS // 20)
    assert [len(data) for data in driver.taken()] == [50]
    assert new.rng.supplied_bytes == 1100


def test_saving_changes_nothing() -> None:
    board = RngBoard(bytes_per_s=1000)
    driver = RngDriver(board)
    driver.offer(1000, 50)
    board.timers.advance(SECOND_NS // 50)
    before = dict(vars(board.rng))
    assert board.transport.save_state() == board.transport.save_state()
    assert vars(board.rng) == before


def test_a_guest_restored_without_the_limit_is_served_at_once() -> None:
    board = RngBoard(bytes_per_s=1)
    driver = RngDriver(board)
    driver.offer(64, 64, 64)
    driver.taken()
    new = RngBoard(ram=board.ram)
    new.transport.restore_state(Fields("rng", board.transport.save_state()))
    new.timers.advance(0)
    assert [len(data) for data in driver.taken()] == [64, 64, 64]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("credit_ns", MAX_FILL_BYTES * SECOND_NS + 1),
        ("supplied_bytes", -1),
        ("waiting", [{"head": 0, "gpas": [RAM_BYTES], "lengths": [8]}]),
        ("waiting", [{"head": 0, "gpas": [], "lengths": []}]),
        ("waiting", [{"head": 0, "gpas": [0], "lengths": [8]}] * 2),
        ("timer", {"remaining_ns": [1, 2]}),
        ("timer", {"remaining_ns": [1 << 62]}),
    ],
)
def test_an_impossible_state_is_refused(name: str, value: object) -> None:
    board = RngBoard(bytes_per_s=1000)
    RngDriver(board)
    saved: dict[str, dict[str, dict[str, object]]] = dict(board.transport.save_state())  # type: ignore[arg-type]
    saved["device"] = {**saved["device"], "own": {**saved["device"]["own"], name: value}}
    with pytest.raises(StateError):
        RngBoard(ram=board.ram).transport.restore_state(Fields("rng", saved))  # type: ignore[arg-type]


@given(
    bytes_per_s=st.sampled_from([1, 7, 1000, 10**6, 1 << 30]),
    steps=st.lists(
        st.one_of(
            st.lists(st.integers(1, 3 * PAGE_BYTES), min_size=1, max_size=8),
            st.integers(1, 2 * SECOND_NS),
        ),
        max_size=20,
    ),
)
def test_the_rate_holds_and_every_buffer_returns(
    bytes_per_s: int, steps: list[list[int] | int]
) -> None:
    """At most the bytes of the elapsed time and one second are supplied; no buffer is lost."""
    board = RngBoard(bytes_per_s)
    driver = RngDriver(board)
    offered: list[int] = []
    returned: list[int] = []
    begin_ns = board.timers.now_ns()
    for step in steps:
        if isinstance(step, int):
            board.timers.advance(step)
        elif len(offered) + len(step) <= QUEUE_SIZE:
            driver.offer(*step)
            offered += step
        returned += map(len, driver.taken())
        elapsed_ns = board.timers.now_ns() - begin_ns
        assert board.rng.supplied_bytes * SECOND_NS <= bytes_per_s * (SECOND_NS + elapsed_ns)
    board.timers.advance(SECOND_NS * (1 + sum(offered) // bytes_per_s) + len(offered))
    returned += map(len, driver.taken())
    assert returned == [min(length, MAX_FILL_BYTES) for length in offered]
