# SPDX-License-Identifier: Apache-2.0
"""The console's saved state: buffers in flight, ports, messages, and what a restore changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from devices.console.control import WINDOW_SIZE, Event
from devices.console.queues import CONTROL_RECEIVE, transmit_queue
from devices.state import Fields, StateError
from devices.testing.states import mutable_copy, transfer_state
from tests.devices.console.console_board import (
    BAD_ID,
    PAGE,
    ConsoleBoard,
    ConsoleDriver,
    RecordingHost,
)

OPEN = Event.PORT_OPEN


def connected(room: int = 1 << 40) -> tuple[ConsoleDriver, RecordingHost]:
    board, host = ConsoleBoard(["data"]), RecordingHost(room)
    board.console.ports["data"].connect(host)
    driver = ConsoleDriver(board).get_ready()
    driver.take_messages()
    return driver, host


def restored(
    driver: ConsoleDriver, ports: Sequence[str] = ("data",), host: RecordingHost | None = None
) -> ConsoleBoard:
    """Return a board with the state of the driver's, which `driver` uses from now on."""
    new = ConsoleBoard(ports, ram=driver.console_board.ram)
    if host is not None:
        new.console.ports["data"].connect(host)
    transfer_state(driver.board.transport, new.transport)
    driver.attach(new)
    new.serve()
    return new


def test_a_buffer_in_flight_continues_where_the_host_stopped() -> None:
    driver, first = connected(room=4)
    driver.write(1, b"0123456789", b"after")
    second = RecordingHost()
    restored(driver, host=second)
    assert first.output + second.output == b"0123456789after"
    assert len(driver.queues[transmit_queue(1)].take_used()) == 2


def test_a_buffer_that_nothing_was_taken_of_is_delivered_completely() -> None:
    driver, _ = connected(room=0)
    driver.write(1, b"0123456789")
    new = restored(driver, host=(host := RecordingHost(room=3)))
    assert host.output == b"012"
    host.room = 100
    new.console.ports["data"].resume()
    assert host.output == b"0123456789"


def test_output_in_flight_waits_for_the_next_host() -> None:
    driver, first = connected(room=4)
    driver.write(1, b"0123456789", b"after")
    restored(driver)
    port = restored(driver).console.ports["data"]
    port.connect(second := RecordingHost())
    driver.board.serve()
    assert first.output + second.output == b"0123456789after"
    port.disconnect()
    driver.write(1, b"discarded")
    assert port.discarded_bytes == len(b"discarded")


def test_a_console_without_a_host_discards_its_output_after_a_restore() -> None:
    board = ConsoleBoard(["data"])
    board.console.ports["console"].connect(RecordingHost(room=4))
    driver = ConsoleDriver(board).get_ready()
    driver.write(0, b"0123456789", b"after")
    new = restored(driver)
    assert new.console.ports["console"].discarded_bytes == 6 + len(b"after")


def test_a_port_that_awaits_its_host_can_be_reset_and_unplugged() -> None:
    driver, _ = connected(room=4)
    driver.write(1, b"0123456789")
    new = restored(driver)
    driver.reset()
    driver.start()
    driver.get_ready()
    assert driver.write(1, b"discarded") == 1
    driver, _ = connected(room=4)
    driver.write(1, b"0123456789")
    new = restored(driver)
    new.console.remove_port(new.console.ports["data"])
    new.serve()
    assert len(driver.queues[transmit_queue(1)].take_used()) == 1


def test_a_buffer_in_flight_survives_two_restores() -> None:
    driver, first = connected(room=4)
    driver.write(1, b"0123456789")
    second, third = RecordingHost(room=3), RecordingHost()
    restored(driver, host=second)
    restored(driver, host=third)
    assert first.output + second.output + third.output == b"0123456789"


def test_the_guest_sees_its_host_go_and_another_come() -> None:
    driver, _ = connected()
    restored(driver, host=RecordingHost())
    assert driver.take_messages() == [(1, OPEN, 0, b""), (1, OPEN, 1, b"")]
    new = restored(driver)
    assert driver.take_messages() == [(1, OPEN, 0, b"")]
    new.console.ports["data"].connect(RecordingHost())
    assert driver.take_messages() == [(1, OPEN, 1, b"")]


def test_input_continues_for_a_guest_that_had_the_port_open() -> None:
    driver, _ = connected()
    new = restored(driver, host=RecordingHost())
    assert new.console.ports["data"].offer(b"input") == 5
    assert driver.read(1) == b"input"


def test_pending_messages_are_restored_except_for_the_window_size() -> None:
    board = ConsoleBoard(["data"])
    board.console.ports["console"].resize(10, 10)
    driver = ConsoleDriver(board)
    driver.control(BAD_ID, Event.DEVICE_READY, 1)
    driver.supply_control(2)  # both ports are announced, nothing else
    driver.take_messages()
    driver.queues[CONTROL_RECEIVE].take_used()
    for _ in range(2):
        driver.control(0, Event.PORT_READY, 1)
    new = ConsoleBoard(["data"], ram=board.ram)
    new.console.ports["console"].resize(90, 30)
    transfer_state(board.transport, new.transport)
    driver.attach(new)
    driver.supply_control(8)
    driver.kick(CONTROL_RECEIVE)
    sizes = [extra for _, event, _, extra in driver.take_messages() if event == Event.RESIZE]
    assert sizes[-1] == WINDOW_SIZE.pack(90, 30)


def test_the_ports_are_those_of_the_saved_device() -> None:
    driver, _ = connected()
    hot = driver.console.add_port("hot")
    driver.set_up_ports()
    driver.console.remove_port(driver.console.ports["data"])
    new = ConsoleBoard(["data"], ram=driver.console_board.ram)
    lost, host = new.console.ports["data"], RecordingHost()
    lost.connect(host)
    transfer_state(driver.board.transport, new.transport)
    driver.attach(new)
    new.serve()
    assert sorted(new.console.ports) == ["console", "hot"]
    assert lost.removed
    new.console.ports["hot"].connect(host)
    driver.write(hot.number, b"hello")
    assert host.output == b"hello"


def saved_state(driver: ConsoleDriver) -> dict[str, Any]:
    payload: dict[str, Any] = mutable_copy(driver.board.transport.save_state())
    return payload


@pytest.mark.parametrize(
    ("port", "change"),
    [
        (1, {"name": "other"}),
        (1, {"is_console": True}),
        (1, {"number": 16}),
        (1, {"number": 0}),
        (1, {"ready": False}),
        (1, {"held": [1 << 20]}),
        (1, {"held": [1, 2]}),
        (0, {"held": [1]}),
        (0, {"name": "a/b"}),
        (0, {"number": 2}),
        (0, {"input_bytes": -1}),
        (0, {"unknown": 1}),
    ],
)
def test_an_impossible_port_is_refused(port: int, change: dict[str, object]) -> None:
    driver, _ = connected(room=1)
    driver.write(1, b"ab")
    saved = saved_state(driver)
    saved["device"]["own"]["ports"][port].update(change)
    with pytest.raises(StateError):
        ConsoleBoard(["data"]).transport.restore_state(Fields("console", saved))


@pytest.mark.parametrize("name", ["data", "console"])
def test_two_ports_of_one_name_or_number_are_refused(name: str) -> None:
    driver, _ = connected()
    saved = saved_state(driver)
    ports = saved["device"]["own"]["ports"]
    ports.append({**ports[1], "name": name, "number": 2 if name == "data" else 1})
    with pytest.raises(StateError):
        ConsoleBoard(["data"]).transport.restore_state(Fields("console", saved))


@pytest.mark.parametrize(
    "message",
    [
        {"port": 32, "event": 6, "value": 1},
        {"port": 0, "event": 0, "value": 1},
        {"port": 0, "event": 9, "value": 1},
        {"port": 0, "event": 6, "value": 2},
    ],
)
def test_an_impossible_message_is_refused(message: dict[str, int]) -> None:
    driver, _ = connected()
    saved = saved_state(driver)
    saved["device"]["own"]["pending"].append(message)
    with pytest.raises(StateError):
        ConsoleBoard(["data"]).transport.restore_state(Fields("console", saved))


def test_saving_changes_nothing() -> None:
    driver, host = connected(room=1)
    driver.write(1, b"ab")
    assert saved_state(driver) == saved_state(driver)
    host.room = 1
    driver.console.ports["data"].resume()
    driver.board.serve()
    assert host.output == b"ab"


def test_a_full_receive_queue_is_restored() -> None:
    driver, _ = connected()
    driver.supply(1, 8)
    new = restored(driver, host=RecordingHost())
    port = new.console.ports["data"]
    assert port.offer(b"x" * 16 * PAGE) + port.offer(b"x" * 8 * PAGE) == 24 * PAGE
