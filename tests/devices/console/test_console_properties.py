# SPDX-License-Identifier: Apache-2.0
"""Each direction is a stream that loses nothing, at any pace of guest and host."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from devices.console.queues import TRANSMIT_SIZE, receive_queue, transmit_queue
from devices.testing.states import transfer_state
from tests.devices.console.console_board import ConsoleBoard, ConsoleDriver, RecordingHost


@dataclass(frozen=True)
class GuestWrites:
    sizes: list[int]


@dataclass(frozen=True)
class HostReads:
    room: int


@dataclass(frozen=True)
class HostWrites:
    count: int


@dataclass(frozen=True)
class GuestSupplies:
    sizes: list[int]


@dataclass(frozen=True)
class SaveAndRestore:
    pass


sizes = st.lists(st.integers(1, 5000), max_size=4)
steps = st.lists(
    st.builds(GuestWrites, sizes)
    | st.builds(HostReads, st.integers(0, 10_000))
    | st.builds(HostWrites, st.integers(0, 10_000))
    | st.builds(GuestSupplies, sizes)
    | st.just(SaveAndRestore()),
    max_size=30,
)


class Session:
    """A guest and a host that exchange numbered bytes, and count what arrived."""

    def __init__(self) -> None:
        board, self.host = ConsoleBoard(["data"]), RecordingHost(0)
        board.console.ports["data"].connect(self.host)
        self.driver = ConsoleDriver(board).get_ready()
        self.sent_by_guest = self.sent_by_host = b""
        self.received_by_guest = b""

    def run(self, step: object) -> None:
        driver, port = self.driver, self.driver.console.ports["data"]
        match step:
            case GuestWrites(sizes):
                in_flight = len(driver.queues[transmit_queue(1)]._in_flight)
                if in_flight + len(sizes) <= TRANSMIT_SIZE:
                    buffers = []
                    for size in sizes:
                        buffers.append(numbered(len(self.sent_by_guest), size))
                        self.sent_by_guest += buffers[-1]
                    driver.write(1, *buffers)
            case HostReads(room):
                self.host.room += room
                port.resume()
                driver.board.serve()
            case HostWrites(count):
                data = numbered(len(self.sent_by_host), count)
                self.sent_by_host += data[: port.offer(data)]
            case GuestSupplies(sizes):
                self.received_by_guest += driver.read(1)
                for size in sizes:
                    if len(driver.queues[receive_queue(1)]._in_flight) < 60:
                        driver.supply(1, 1, size)
            case SaveAndRestore():
                self.save_and_restore()
        assert self.sent_by_guest.startswith(self.host.output)
        assert self.sent_by_host.startswith(self.received_by_guest)

    def save_and_restore(self) -> None:
        new = ConsoleBoard(["data"], ram=self.driver.console_board.ram)
        new.console.ports["data"].connect(self.host)
        transfer_state(self.driver.board.transport, new.transport)
        self.driver.attach(new)
        new.serve()


def numbered(start: int, count: int) -> bytes:
    """Return bytes that show their position in a stream."""
    return bytes(position * 7 % 251 for position in range(start, start + count))


@given(steps)
def test_both_directions_are_streams(steps: list[object]) -> None:
    session = Session()
    for step in steps:
        session.run(step)
    session.run(HostReads(1 << 40))
    session.run(GuestSupplies([]))
    assert session.host.output == session.sent_by_guest
    assert session.received_by_guest == session.sent_by_host
