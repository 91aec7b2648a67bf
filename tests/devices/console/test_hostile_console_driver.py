# SPDX-License-Identifier: Apache-2.0
"""Rings and messages that no driver should send, and states that no machine has saved."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from devices.console.control import HEADER, PendingMessages
from devices.console.device import ConsoleDevice
from devices.console.names import MAX_PORTS
from devices.console.queues import (
    CONTROL_RECEIVE,
    CONTROL_TRANSMIT,
    RECEIVE_SIZE,
    receive_queue,
    transmit_queue,
)
from devices.testing.driver import NEEDS_RESET
from devices.testing.states import restores
from devices.testing.strategies import RingContents, corrupted, ring_contents
from tests.devices.console.console_board import (
    RAM_BYTES,
    ConsoleBoard,
    ConsoleDriver,
    RecordingHost,
)

QUEUES = st.sampled_from(
    [0, 1, CONTROL_RECEIVE, CONTROL_TRANSMIT, receive_queue(1), transmit_queue(1)]
)


def console_driver(room: int = 100) -> tuple[ConsoleDriver, RecordingHost]:
    board, host = ConsoleBoard(["data"]), RecordingHost(room)
    board.console.ports["data"].connect(host)
    return ConsoleDriver(board), host


def check_bounds(console: ConsoleDevice) -> None:
    assert len(console._pending) <= PendingMessages.MAX_PER_PORT * MAX_PORTS
    assert len(console.ports) <= MAX_PORTS


@given(contents=st.lists(st.tuples(QUEUES, ring_contents(RECEIVE_SIZE, RAM_BYTES)), max_size=4))
def test_any_ring_is_served_or_breaks_the_device(contents: list[tuple[int, RingContents]]) -> None:
    """No ring raises an exception, and a reset makes the device usable again."""
    driver, host = console_driver()
    driver.get_ready()
    port = driver.console.ports["data"]
    for queue, each in contents:
        each.write_to(driver.queues[queue])
        driver.kick(queue)
        port.offer(b"input")
        host.room = 50
        port.resume()
        driver.board.serve()
        check_bounds(driver.console)
    driver.reset()
    driver.start()
    driver.get_ready()
    host.room = 100
    driver.write(1, b"after the reset")
    assert host.output.endswith(b"after the reset")
    assert not driver.status & NEEDS_RESET


@given(
    messages=st.lists(
        st.binary(max_size=12)
        | st.builds(HEADER.pack, st.integers(0, 17), st.integers(0, 9), st.integers(0, 2)),
        max_size=60,
    ),
    buffers=st.integers(0, 64),
)
def test_any_messages_in_any_order_are_served(messages: list[bytes], buffers: int) -> None:
    driver, _ = console_driver()
    driver.supply_control(buffers)
    port = driver.console.ports["data"]
    for index, message in enumerate(messages):
        driver.send(CONTROL_TRANSMIT, [message] if message else [], [] if message else [1])
        if index % 7 == 3:
            driver.console.remove_port(port)
            port = driver.console.add_port("data")
            port.connect(RecordingHost())
        if index % 5 == 4:
            driver.take_messages()
        check_bounds(driver.console)
    assert not driver.status & NEEDS_RESET


def test_a_driver_that_offers_one_buffer_forever_is_served_a_bounded_part_of_it() -> None:
    """The same buffer made available 256 times: the host's room is the limit, not the ring."""
    driver, host = console_driver(room=250)
    queue = driver.queues[transmit_queue(1)]
    head = queue.add([b"x" * 100], publish=False)
    for slot in range(queue.size):
        queue.set_avail_ring(slot, head)
    queue.set_avail_idx(queue.size)
    driver.kick(transmit_queue(1))
    assert len(host.output) == 250
    ring = driver.board.device.queues[transmit_queue(1)].ring
    assert ring is not None
    assert ring.next_avail == 3


@given(data=st.data())
def test_any_state_is_restored_or_refused(data: st.DataObject) -> None:
    """A restored device works, whatever the saved state says."""
    driver, _ = console_driver(room=3)
    driver.get_ready()
    driver.write(1, b"in flight")
    driver.console.add_port("hot")
    new = ConsoleBoard(["data"], ram=driver.console_board.ram)
    new.console.ports["data"].connect(RecordingHost())
    if restores(new.transport, data.draw(corrupted(driver.board.transport.save_state()))):
        new.serve()
        for port in new.console.ports.values():
            port.offer(b"input")
        new.serve()
        new.transport.save_state()
        check_bounds(new.console)


def test_a_ring_found_malformed_on_input_of_the_host_loses_its_notifiers() -> None:
    board = ConsoleBoard(["data"])
    driver = ConsoleDriver(board).get_ready()
    driver.queues[receive_queue(1)].set_avail_idx(0x8000)
    assert board.console.ports["data"].offer(b"input") == 0
    assert driver.status & NEEDS_RESET
    driver.write_pci(0x04, 2, 0b010)  # no bus mastering, so no queue is served
    board.transport.serve_queue(0)
    assert board.notifiers.assigned == {}
