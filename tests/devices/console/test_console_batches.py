# SPDX-License-Identifier: Apache-2.0
"""Output is passed on several buffers at once."""

from __future__ import annotations

import pytest

from devices.console.port import MAX_WRITE_BYTES
from devices.console.queues import transmit_queue
from devices.testing.driver_queue import DriverQueue
from devices.testing.states import transfer_state
from devices.virtio.device import STREAM_BUFFERS_PER_CALL
from devices.virtio.status import Status
from pyvmm_native.chain_reader import ChainReader
from tests.devices.console.console_board import ConsoleBoard, ConsoleDriver, RecordingHost

QUEUE = transmit_queue(1)


class CountingHost(RecordingHost):
    """Keeps the sizes of what it was offered, in `offered`."""

    def __init__(self, room: int = 1 << 40) -> None:
        super().__init__(room)
        self.offered: list[int] = []

    def write(self, output: ChainReader) -> int:
        self.offered.append(len(output))
        return super().write(output)


def connected(host: RecordingHost) -> tuple[ConsoleDriver, DriverQueue]:
    board = ConsoleBoard(["data"])
    board.console.ports["data"].connect(host)
    driver = ConsoleDriver(board).get_ready()
    return driver, driver.queues[QUEUE]


def test_buffers_of_one_notification_are_one_write_and_one_interrupt() -> None:
    host = CountingHost()
    driver, _ = connected(host)
    counters = driver.console.queues[QUEUE].counters
    before = counters.interrupts
    assert driver.write(1, b"one", b"", b"three", b"four") == 4
    assert (host.output, host.offered) == (b"onethreefour", [12])
    assert counters.interrupts == before + 1
    assert (counters.requests, counters.readable_bytes, counters.bad_payloads) == (4, 12, 0)


@pytest.mark.parametrize("room", range(13))
def test_a_host_that_takes_a_part_gets_the_rest_in_order(room: int) -> None:
    host = CountingHost(room)
    driver, queue = connected(host)
    returned = driver.write(1, b"one", b"three", b"four")
    assert host.output == b"onethreefour"[:room]
    assert returned == (room >= 3) + (room >= 8) + (room >= 12)
    ring = driver.console.queues[QUEUE].ring
    assert ring is not None
    in_flight = (ring.next_avail - ring.next_used) & 0xFFFF
    assert in_flight == (room < 12), "only one buffer is kept"
    queue.add([b"five"])
    driver.kick(QUEUE)
    host.room = 100
    driver.console.ports["data"].resume()
    driver.board.serve()
    assert host.output == b"onethreefourfive"
    assert returned + len(queue.take_used()) == 4
    assert driver.console.queues[QUEUE].counters.requests == 4
    assert driver.console.ports["data"].output_bytes == 16


def test_a_call_takes_a_limited_number_of_buffers() -> None:
    host = CountingHost()
    driver, queue = connected(host)
    for _ in range(STREAM_BUFFERS_PER_CALL + 1):
        queue.add([b"x"])
    assert driver.console.process_queue(QUEUE)
    assert host.offered == [STREAM_BUFFERS_PER_CALL]
    assert not driver.console.process_queue(QUEUE)
    assert host.offered == [STREAM_BUFFERS_PER_CALL, 1]


def test_a_call_takes_a_limited_number_of_bytes() -> None:
    host = CountingHost()
    driver, queue = connected(host)
    half = bytes(MAX_WRITE_BYTES // 2)
    for _ in range(3):
        queue.add([half])
    assert driver.console.process_queue(QUEUE)
    assert not driver.console.process_queue(QUEUE)
    assert host.offered == [MAX_WRITE_BYTES, MAX_WRITE_BYTES // 2]


def test_a_bad_buffer_between_others_is_returned_without_its_data() -> None:
    host = CountingHost()
    driver, queue = connected(host)
    queue.add([b"before"])
    queue.add([b"bad"], [8])
    queue.add([b"after"])
    driver.kick(QUEUE)
    assert host.output == b"beforeafter"
    assert len(queue.take_used()) == 3
    assert driver.console.queues[QUEUE].counters.bad_payloads == 1


def test_buffers_before_a_malformed_one_are_passed_on_and_notified() -> None:
    host = CountingHost()
    driver, queue = connected(host)
    at = queue.avail_idx
    queue.add([b"good"])
    queue.add([b"malformed"])
    queue.set_avail_ring((at + 1) % queue.size, 0xFFFF)
    before = driver.console.queues[QUEUE].counters.interrupts
    driver.kick(QUEUE)
    assert host.output == b"good"
    assert len(queue.take_used()) == 1
    assert driver.console.queues[QUEUE].counters.interrupts == before + 1
    assert driver.console.status & Status.DEVICE_NEEDS_RESET


def test_output_of_an_unplugged_port_is_returned_and_counted_as_bad() -> None:
    host = CountingHost()
    driver, _ = connected(host)
    driver.console.remove_port(driver.console.ports["data"])
    assert driver.write(1, b"one", b"two") == 2
    assert host.output == b""
    counters = driver.console.queues[QUEUE].counters
    assert (counters.requests, counters.bad_payloads) == (2, 2)


def test_a_buffer_in_flight_that_has_become_shorter_ends_at_its_new_end() -> None:
    """A restored device reads the descriptors again, which the driver must not have changed."""
    host = CountingHost(6)
    driver, queue = connected(host)
    driver.write(1, b"shorter", b"next")
    port = driver.console.ports["data"]
    saved = port.save_state()
    assert saved["held"] == [6]
    new = ConsoleBoard(["data"], ram=driver.console_board.ram)
    new.console.ports["data"].connect(host)
    transfer_state(driver.board.transport, new.transport)
    slot = (queue.avail_idx - 2) % queue.size
    queue.set_desc(slot, 0, 3)
    host.room = 100
    driver.attach(new)
    new.serve()
    assert host.output == b"shortenext"
