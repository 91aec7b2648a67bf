# SPDX-License-Identifier: Apache-2.0
"""Control messages of the console: announcing, configuring, opening and unplugging ports."""

from __future__ import annotations

import pytest

from devices.console.config import MULTIPORT
from devices.console.control import HEADER, Event, PendingMessages
from devices.console.names import MAX_PORTS
from devices.console.queues import CONTROL_RECEIVE, CONTROL_TRANSMIT, transmit_queue
from devices.testing.driver import ALL_FEATURES
from tests.devices.console.console_board import (
    BAD_ID,
    ConsoleBoard,
    ConsoleDriver,
    RecordingHost,
)

ADD, REMOVE, OPEN = Event.DEVICE_ADD, Event.DEVICE_REMOVE, Event.PORT_OPEN


def ready_driver(*ports: str) -> ConsoleDriver:
    driver = ConsoleDriver(ConsoleBoard(ports, console=False)).get_ready()
    driver.take_messages()
    driver.messages.clear()
    return driver


@pytest.mark.conformance("5.3.5-1", "5.3.6-4", "5.3.6.2-1", "5.3.6.2-2")
def test_the_driver_is_told_everything_about_each_port() -> None:
    board = ConsoleBoard(["org.pyvmm.first", "second"])
    board.console.ports["second"].connect(RecordingHost())
    driver = ConsoleDriver(board)
    driver.supply_control(16)
    assert driver.take_messages() == [], "the driver has not said that it is ready"
    driver.control(BAD_ID, Event.DEVICE_READY, 1)
    assert driver.take_messages() == [(port, ADD, 0, b"") for port in range(3)]
    driver.control(0, Event.PORT_READY, 1)
    assert driver.take_messages() == [
        (0, Event.CONSOLE_PORT, 1, b""),
        (0, Event.PORT_NAME, 0, b"console"),
    ]
    driver.control(1, Event.PORT_READY, 1)
    assert driver.take_messages() == [(1, Event.PORT_NAME, 0, b"org.pyvmm.first")]
    driver.control(2, Event.PORT_READY, 1)
    assert driver.take_messages() == [(2, Event.PORT_NAME, 0, b"second"), (2, OPEN, 1, b"")]


def test_a_driver_that_failed_is_told_nothing() -> None:
    driver = ConsoleDriver(ConsoleBoard(["data"]))
    driver.supply_control(8)
    driver.control(BAD_ID, Event.DEVICE_READY, 0)
    assert driver.take_messages() == []


@pytest.mark.conformance("5.3.6.2-3")
def test_a_host_that_comes_and_goes_opens_and_closes_the_port() -> None:
    driver = ready_driver("data")
    port = driver.console.ports["data"]
    port.connect(RecordingHost())
    assert driver.take_messages() == [(1, OPEN, 1, b"")]
    port.disconnect()
    assert driver.take_messages() == [(1, OPEN, 0, b"")]


def test_a_port_that_the_driver_cannot_set_up_stays_closed() -> None:
    driver = ready_driver("data")
    driver.control(1, Event.PORT_READY, 0)
    port = driver.console.ports["data"]
    port.connect(RecordingHost())
    assert port.offer(b"x") == 0
    assert driver.take_messages() == []


@pytest.mark.conformance("5.3.6.2-4", "5.3.6.2.1-1", "5.3.6.2.1-2")
def test_ports_are_plugged_and_unplugged_while_the_driver_runs() -> None:
    driver = ready_driver()
    port = driver.console.add_port("hot")
    driver.set_up_ports()
    host = RecordingHost()
    port.connect(host)
    driver.write(1, b"hello")
    assert (host.output, port.offer(b"input")) == (b"hello", 5)
    driver.take_messages()
    driver.console.remove_port(port)
    assert driver.take_messages() == [(1, REMOVE, 0, b"")]
    assert driver.console.ports == {}
    assert (port.removed, host.was_unplugged, port.offer(b"late")) == (True, True, 0)
    with pytest.raises(RuntimeError, match="'hot' was unplugged"):
        port.connect(host)
    driver.write(1, b"late")
    assert host.output == b"hello"
    assert driver.console.add_port("again").number == 1
    assert driver.take_messages() == [(1, ADD, 0, b"")]


def test_a_port_that_the_driver_never_saw_is_removed_silently() -> None:
    driver = ConsoleDriver(ConsoleBoard(["data"], console=False))
    driver.control(BAD_ID, Event.DEVICE_READY, 1)  # the message waits for a buffer
    driver.console.remove_port(driver.console.ports["data"])
    driver.supply_control(4)
    assert driver.take_messages() == []


def test_unplugging_discards_the_output_in_flight_and_frees_the_queue() -> None:
    driver = ready_driver("data")
    port, host = driver.console.ports["data"], RecordingHost(room=2)
    port.connect(host)
    driver.write(1, b"first", b"second")
    driver.console.remove_port(port)
    driver.board.serve()
    assert len(driver.queues[transmit_queue(1)].take_used()) == 2
    new = driver.console.add_port("data")
    driver.set_up_ports()
    new.connect(host := RecordingHost())
    driver.write(1, b"third")
    assert host.output == b"third"


def test_names_and_the_number_of_ports_are_limited() -> None:
    console = ConsoleBoard(["data"]).console
    for name in ("data", "", "a/b", "a b", "..", "\n", "x" * 65, "console"):
        with pytest.raises(ValueError, match="cannot be named"):
            console.add_port(name)
    for number in range(2, MAX_PORTS):
        assert console.add_port(f"port{number}").number == number
    with pytest.raises(ValueError, match="one more than the 32 possible"):
        console.add_port("more")
    with pytest.raises(ValueError, match="'console' cannot be removed"):
        console.remove_port(console.ports["console"])
    port = console.ports["data"]
    console.remove_port(port)
    with pytest.raises(ValueError, match="'data' cannot be removed"):
        console.remove_port(port)


def test_a_driver_that_resumes_from_suspend_is_told_again() -> None:
    """Linux resets the device, and sends PORT_READY for each port it knows, not DEVICE_READY."""
    driver = ready_driver("data")
    host = RecordingHost()
    driver.console.ports["data"].connect(host)
    driver.reset()
    driver.start()
    driver.supply_control(16)
    driver.supply(1, 4)
    driver.control(1, Event.PORT_READY, 1)
    driver.control(1, OPEN, 1)
    assert driver.take_messages() == [(1, Event.PORT_NAME, 0, b"data"), (1, OPEN, 1, b"")]
    assert driver.console.ports["data"].offer(b"x") == 1
    driver.console.add_port("hot")
    assert driver.take_messages() == [(2, ADD, 0, b"")]


def test_messages_wait_for_buffers_and_do_not_accumulate() -> None:
    board = ConsoleBoard(["data"], console=False)
    driver = ConsoleDriver(board).get_ready(control_buffers=2)
    port = board.console.ports["data"]
    for _ in range(100):
        driver.control(1, Event.PORT_READY, 1)
        port.connect(RecordingHost())
        port.disconnect()
    assert len(board.console._pending) <= PendingMessages.MAX_PER_PORT
    driver.supply_control(16)
    driver.take_messages()
    last = [value for _, event, value, _ in driver.messages if event == OPEN][-1]
    assert last == 0


def test_a_port_that_closes_and_opens_is_seen_to_do_both() -> None:
    pending = PendingMessages()
    for value in (0, 1, 0, 1, 0, 1, 1):
        pending.add(1, OPEN, value)
    assert [each.value for each in pending] == [0, 1]
    pending.add(1, OPEN, 0)
    assert [each.value for each in pending] == [0]
    pending.add(2, Event.RESIZE)
    pending.add(2, Event.RESIZE)
    assert len(pending) == 2


def test_removing_and_adding_a_port_again_and_again_does_not_accumulate() -> None:
    driver = ready_driver("data")
    for _ in range(100):  # more than there are control buffers
        driver.console.remove_port(driver.console.ports["data"])
        driver.console.add_port("data")
    assert 0 < len(driver.console._pending) <= 2


def test_a_control_buffer_without_room_is_returned_and_the_message_waits() -> None:
    driver = ConsoleDriver(ConsoleBoard(["data"], console=False))
    driver.supply_control(20, size=HEADER.size - 1)
    driver.control(BAD_ID, Event.DEVICE_READY, 1)
    assert driver.take_messages() == []
    driver.board.serve()
    driver.supply_control(1, size=HEADER.size)
    driver.kick(CONTROL_RECEIVE)
    assert driver.take_messages() == [(1, ADD, 0, b"")]
    assert driver.board.device.queues[CONTROL_RECEIVE].counters.bad_payloads == 20


@pytest.mark.parametrize(
    "message",
    [
        b"",
        HEADER.pack(1, OPEN, 1)[:-1],
        HEADER.pack(1, OPEN, 1) + b"\0",
        HEADER.pack(1, OPEN, 2),
        HEADER.pack(1, Event.DEVICE_ADD, 0),
        HEADER.pack(1, 8, 0),
        HEADER.pack(2, OPEN, 1),
        HEADER.pack(BAD_ID, Event.PORT_READY, 1),
    ],
)
def test_an_invalid_message_is_counted_and_has_no_effect(message: bytes) -> None:
    driver = ready_driver("data")
    before = driver.console.save_own_state()
    driver.send(CONTROL_TRANSMIT, [message])
    assert driver.console.queues[CONTROL_TRANSMIT].counters.bad_payloads == 1
    assert driver.console.save_own_state() == before


def test_ports_that_are_not_announced_or_not_ready_cannot_be_used() -> None:
    driver = ConsoleDriver(ConsoleBoard(["data"], console=False))
    driver.control(BAD_ID, Event.DEVICE_READY, 1)
    driver.control(1, Event.PORT_READY, 1)
    driver.control(1, OPEN, 1)
    assert driver.console.queues[CONTROL_TRANSMIT].counters.bad_payloads == 2
    assert not driver.console.ports["data"].guest_open


def test_a_driver_without_multiport_sends_and_receives_no_messages() -> None:
    driver = ConsoleDriver(ConsoleBoard(["data"]), features=ALL_FEATURES & ~MULTIPORT)
    driver.console.add_port("hot")
    assert list(driver.queues) == [0, 1]
    assert len(driver.console._pending) == 0
