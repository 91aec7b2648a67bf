# SPDX-License-Identifier: Apache-2.0
"""The console on a board: identity, data in both directions, flow control, window size."""

from __future__ import annotations

import pytest

from devices.console.config import MULTIPORT, SIZE
from devices.console.control import WINDOW_SIZE, Event
from devices.console.names import MAX_PORTS
from devices.console.port import MAX_WRITE_BYTES
from devices.console.queues import (
    CONTROL_RECEIVE,
    CONTROL_TRANSMIT,
    TRANSMIT_SIZE,
    port_of,
    queue_specs,
    receive_queue,
    transmit_queue,
)
from devices.testing.driver import ALL_FEATURES, NEEDS_RESET, RING_RESET
from devices.virtio.device import BUFFERS_PER_CALL
from tests.devices.console.console_board import (
    PAGE,
    ConsoleBoard,
    ConsoleDriver,
    RecordingHost,
)

BINARY = bytes(range(256)) * 40


def connected(
    room: int = 1 << 40, *, features: int = ALL_FEATURES
) -> tuple[ConsoleDriver, RecordingHost]:
    """Return a driver that has opened port 1, "data", and the port's host."""
    board, host = ConsoleBoard(["data"]), RecordingHost(room)
    board.console.ports["data"].connect(host)
    return ConsoleDriver(board, features=features).get_ready(), host


@pytest.mark.conformance("5.3.1-1", "5.3.2-1", "5.3.3-1", "5.3.4-1")
def test_identity_queues_and_configuration() -> None:
    driver = ConsoleDriver(ConsoleBoard())
    assert driver.read_pci(0, 4) == 0x1043_1AF4
    assert driver.existing_queues() == list(range(2 * (MAX_PORTS + 1)))
    assert driver.read_device_features() & 0xFF_FFFF == SIZE | MULTIPORT
    assert [driver.read_config(0, 2), driver.read_config(2, 2)] == [0, 0]
    assert driver.read_config(4, 4) == MAX_PORTS


@pytest.mark.conformance("5.3.2-1")
def test_port_0_has_the_first_queues_and_the_control_queues_follow() -> None:
    numbers = [(receive_queue(port), transmit_queue(port)) for port in range(3)]
    assert numbers == [(0, 1), (4, 5), (6, 7)]
    assert (CONTROL_RECEIVE, CONTROL_TRANSMIT) == (2, 3)
    assert [port_of(queue) for queue in range(8)] == [0, 0, None, None, 1, 1, 2, 2]
    assert [len(queue_specs(ports)) for ports in (1, MAX_PORTS)] == [4, 66]


@pytest.mark.conformance("5.3.2-2", "5.3.6-1", "5.3.6-2")
def test_a_driver_without_multiport_has_a_console_on_port_0() -> None:
    board, host = ConsoleBoard(["data"]), RecordingHost()
    port = board.console.ports["console"]
    port.connect(host)
    driver = ConsoleDriver(board, features=ALL_FEATURES & ~MULTIPORT)
    assert driver.existing_queues() == [0, 1]
    assert port.offer(b"key") == 0
    driver.supply(0, 1)
    assert host.rooms_available == 1
    assert port.offer(b"key") == 3
    assert driver.read(0) == b"key"
    assert driver.write(0, b"echo") == 1
    assert host.output == b"echo"
    assert board.console.ports["data"].offer(b"x") == 0


@pytest.mark.conformance("5.3.6-1", "5.3.6-2")
def test_every_byte_passes_in_both_directions() -> None:
    driver, host = connected()
    assert driver.write(1, BINARY, b"end") == 2
    assert host.output == BINARY + b"end"
    port = driver.console.ports["data"]
    assert port.offer(BINARY) == len(BINARY)
    assert driver.read(1) == BINARY
    assert (port.output_bytes, port.input_bytes) == (len(BINARY) + 3, len(BINARY))


def test_ports_are_independent() -> None:
    board = ConsoleBoard(["first", "second"])
    hosts = {name: RecordingHost() for name in board.console.ports}
    for name, port in board.console.ports.items():
        port.connect(hosts[name])
    driver = ConsoleDriver(board).get_ready()
    hosts["first"].room = 0
    for port_number, data in ((0, b"zero"), (1, b"one"), (2, b"two")):
        driver.write(port_number, data)
    assert [host.output for host in hosts.values()] == [b"zero", b"", b"two"]


def test_a_host_without_room_stops_the_queue_until_it_has_some() -> None:
    driver, host = connected(room=7)
    assert driver.write(1, b"first", b"second", b"third") == 1
    assert host.output == b"firstse"
    queue = driver.queues[transmit_queue(1)]
    driver.kick(transmit_queue(1))
    assert queue.take_used() == [], "a notification does not make room"
    port = driver.console.ports["data"]
    host.room = 2
    port.resume()
    driver.board.serve()
    assert host.output == b"firstseco"
    host.room = 100
    port.resume()
    driver.board.serve()
    assert host.output == b"firstsecondthird"
    assert len(queue.take_used()) == 2


def test_a_stalled_queue_takes_one_buffer_only() -> None:
    driver, host = connected(room=0)
    driver.write(1, *[b"x" * 100] * (TRANSMIT_SIZE // 2))
    ring = driver.board.device.queues[transmit_queue(1)].ring
    assert ring is not None
    assert ring.next_avail == 1
    assert host.output == b""


def test_a_driver_without_buffers_stops_the_host_until_it_supplies_some() -> None:
    driver, host = connected()
    port = driver.console.ports["data"]
    assert port.offer(b"x" * 20 * PAGE) == 16 * PAGE
    assert port.offer(b"x") == 0
    assert host.rooms_available == 0
    assert driver.read(1) == b"x" * 16 * PAGE
    driver.supply(1, 1, 10)
    assert host.rooms_available == 1
    assert port.offer(b"0123456789abc") == 10
    driver.supply(1, 1)
    assert host.rooms_available == 2
    driver.supply(1, 1)
    assert host.rooms_available == 2, "nothing was refused since"


def test_one_offer_uses_a_bounded_number_of_buffers() -> None:
    driver, host = connected()
    driver.supply(1, 40, 1)
    port = driver.console.ports["data"]
    port.offer(b"x" * 16 * PAGE)  # those of set_up_ports
    assert port.offer(b"y" * 40) == BUFFERS_PER_CALL
    assert driver.board.notifiers.notified == [receive_queue(1)], "there is more room"
    driver.board.serve()
    assert host.rooms_available > 0


def test_input_waits_until_the_guest_opens_the_port() -> None:
    board, host = ConsoleBoard(["data"]), RecordingHost()
    port = board.console.ports["data"]
    port.connect(host)
    driver = ConsoleDriver(board)
    driver.supply_control(8)
    driver.control(0, Event.DEVICE_READY, 1)
    driver.supply(1, 4)
    driver.control(1, Event.PORT_READY, 1)
    assert port.offer(b"early") == 0
    driver.control(1, Event.PORT_OPEN, 1)
    assert (host.guest_open, host.rooms_available) == ([True], 1)
    assert port.offer(b"early") == 5
    driver.control(1, Event.PORT_OPEN, 0)
    assert host.guest_open == [True, False]
    assert port.offer(b"late") == 0
    driver.control(1, Event.PORT_OPEN, 0)
    assert host.guest_open == [True, False]


def test_output_without_a_host_is_discarded() -> None:
    driver, host = connected(room=3)
    port = driver.console.ports["data"]
    driver.write(1, b"partly")
    port.disconnect()
    driver.board.serve()
    assert len(driver.queues[transmit_queue(1)].take_used()) == 1
    assert driver.write(1, b"all of this") == 1
    assert (host.output, port.discarded_bytes) == (b"par", 3 + 11)
    port.disconnect()


def test_a_second_host_is_refused() -> None:
    driver, _ = connected()
    with pytest.raises(RuntimeError, match="'data' has a host already"):
        driver.console.ports["data"].connect(RecordingHost())


@pytest.mark.conformance("5.3.6.1-1")
def test_buffers_of_the_wrong_direction_carry_no_data() -> None:
    driver, host = connected()
    queue = driver.queues[transmit_queue(1)]
    queue.add([b"data"], [8])
    driver.kick(transmit_queue(1))
    assert [used.length for used in queue.take_used()] == [0]
    assert host.output == b""
    driver.queues[receive_queue(1)].take_used()
    port = driver.console.ports["data"]
    port.offer(b"x" * 16 * PAGE)
    driver.read(1)
    driver.queues[receive_queue(1)].add([b"data"], [8])
    driver.supply(1, 1)
    assert port.offer(b"input") == 5
    assert driver.read(1) == b"input"
    counters = [
        driver.board.device.queues[queue(1)].counters for queue in (receive_queue, transmit_queue)
    ]
    assert [each.bad_payloads for each in counters] == [1, 1]


def test_the_longest_write_of_linux_passes_and_a_longer_one_is_returned() -> None:
    driver, host = connected()
    pipe = [b"p" * PAGE] * (MAX_WRITE_BYTES // PAGE)
    driver.send(transmit_queue(1), pipe, indirect=True)
    assert len(host.output) == MAX_WRITE_BYTES
    driver.send(transmit_queue(1), [b"x" * (MAX_WRITE_BYTES + 1)])
    assert len(host.output) == MAX_WRITE_BYTES
    assert driver.board.device.queues[transmit_queue(1)].counters.bad_payloads == 1
    assert not driver.status & NEEDS_RESET


@pytest.mark.conformance("5.3.6-3")
def test_a_resize_changes_the_configuration_and_tells_a_console() -> None:
    board = ConsoleBoard(["data"])
    console, data = board.console.ports["console"], board.console.ports["data"]
    driver = ConsoleDriver(board).get_ready()
    driver.take_messages()
    before = board.device.config_notifications
    console.resize(132, 43)
    console.resize(132, 43)
    data.resize(10, 10)
    assert (driver.read_config(0, 2), driver.read_config(2, 2)) == (132, 43)
    assert board.device.config_notifications == before + 1
    assert driver.take_messages() == [(0, Event.RESIZE, 0, WINDOW_SIZE.pack(132, 43))]
    with pytest.raises(ValueError, match="65536 columns"):
        console.resize(65536, 1)


def test_a_size_known_before_the_driver_is_part_of_the_port_s_configuration() -> None:
    board = ConsoleBoard()
    board.console.ports["console"].resize(80, 25)
    driver = ConsoleDriver(board).get_ready()
    assert (0, Event.RESIZE, 0, WINDOW_SIZE.pack(80, 25)) in driver.take_messages()
    assert board.device.config_notifications == 0, "no driver ran"


def test_a_reset_drops_the_buffer_in_flight_and_closes_all_ports() -> None:
    driver, host = connected(room=3)
    driver.write(1, b"before")
    driver.reset()
    assert host.guest_open == [True, False]
    port = driver.console.ports["data"]
    host.room = 1000
    port.resume()
    assert host.output == b"bef"
    assert port.offer(b"x") == 0
    driver.start()
    driver.get_ready()
    driver.write(1, b"after")
    assert host.output == b"befafter"


def test_a_queue_reset_drops_the_buffer_in_flight() -> None:
    driver, host = connected(room=3)
    assert driver.features & RING_RESET
    driver.write(1, b"before")
    for queue in (transmit_queue(1), CONTROL_RECEIVE):
        driver.write_common("queue_select", queue)
        driver.write_common("queue_reset", 1)
        driver.set_up_queue(queue)
    host.room = 1000
    driver.write(1, b"after")
    assert host.output == b"befafter"


def test_a_stalled_queue_survives_a_time_without_bus_mastering() -> None:
    driver, host = connected(room=3)
    driver.write(1, b"before", b"after")
    port = driver.console.ports["data"]
    driver.write_pci(0x04, 2, 0b010)
    host.room = 1000
    port.resume()
    assert port.offer(b"input") == 0
    assert host.output == b"bef", "the buffer could not be returned"
    driver.write_pci(0x04, 2, 0b110)
    driver.board.serve()
    assert host.output == b"beforeafter"
    assert len(driver.queues[transmit_queue(1)].take_used()) == 2
    assert host.rooms_available == 1


@pytest.mark.parametrize("event_idx", [False, True])
def test_no_notification_is_needed_while_buffers_are_left(event_idx: bool) -> None:
    features = ALL_FEATURES if event_idx else ALL_FEATURES & ~(1 << 29)
    driver, _ = connected(features=features)
    queue = driver.queues[receive_queue(1)]
    port = driver.console.ports["data"]
    queue.should_notify()
    port.offer(b"x")
    queue.add([], [PAGE])
    assert not queue.should_notify()
    port.offer(b"x" * 20 * PAGE)
    port.offer(b"x")
    queue.take_used()
    queue.add([], [PAGE])
    assert queue.should_notify()


def test_a_paused_device_accesses_no_memory_for_its_hosts() -> None:
    driver, host = connected(room=3)
    driver.write(1, b"before", b"after")
    port = driver.console.ports["data"]
    driver.console.set_paused(True)
    host.room = 100
    port.resume()
    port.disconnect()
    port.connect(host)
    assert port.offer(b"input") == 0
    driver.kick(transmit_queue(1))
    assert host.output == b"bef"
    driver.console.set_paused(False)
    driver.board.serve()
    assert host.output == b"beforeafter"
    assert host.rooms_available == 1
