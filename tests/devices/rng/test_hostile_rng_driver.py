# SPDX-License-Identifier: Apache-2.0
"""Rings that no driver should build, and states that no machine has saved, given to the device."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from devices.rng.device import QUEUE_SIZE
from devices.testing.driver import NEEDS_RESET
from devices.testing.states import restores
from devices.testing.strategies import RingContents, corrupted, ring_contents
from tests.devices.rng.rng_board import RAM_BYTES, REQUEST, SECOND_NS, RngBoard, RngDriver

RATES = st.sampled_from([0, 1, 1000, 1 << 30])


@given(
    bytes_per_s=RATES,
    contents=st.lists(ring_contents(QUEUE_SIZE, RAM_BYTES), min_size=1, max_size=3),
)
def test_any_ring_is_served_or_breaks_the_device(
    bytes_per_s: int, contents: list[RingContents]
) -> None:
    """No ring raises an exception, and a reset makes the device usable again."""
    board = RngBoard(bytes_per_s, entropy=bytes)
    driver = RngDriver(board)
    for each in contents:
        each.write_to(driver.queues[REQUEST])
        driver.notify(REQUEST)
        board.serve()
        board.timers.advance(SECOND_NS // 3)
    assert board.rng.supplied_bytes >= 0
    driver.reset()
    driver.start()
    driver.offer(1)
    board.timers.advance(10 * SECOND_NS)
    assert [len(data) for data in driver.taken()] == [1]
    assert not driver.status & NEEDS_RESET


@given(bytes_per_s=RATES, data=st.data())
def test_any_state_is_restored_or_refused(bytes_per_s: int, data: st.DataObject) -> None:
    """A restored device works, whatever the saved state says."""
    board = RngBoard(bytes_per_s)
    driver = RngDriver(board)
    driver.offer(64, 4096, 64)
    saved = data.draw(corrupted(board.transport.save_state()))
    new = RngBoard(bytes_per_s, ram=board.ram)
    if restores(new.transport, saved):
        new.serve()
        new.timers.advance(SECOND_NS)
        new.transport.save_state()
