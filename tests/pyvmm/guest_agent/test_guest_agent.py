# SPDX-License-Identifier: Apache-2.0
"""Commands through the guest agent's protocol, on a real console device."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import functools
import os
import signal
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from pyvmm.guest_agent import client
from pyvmm.guest_agent.client import GuestAgent
from pyvmm.guest_agent.errors import (
    AgentFailed,
    CommandNotStarted,
    CommandUnusable,
    OutputIncomplete,
    WorkingDirectoryUnusable,
)
from pyvmm.guest_agent.messages import MAX_PAYLOAD_BYTES, EndKind, TerminalSize, Type
from pyvmm.guest_agent.streams import (
    MAX_WAITING_BYTES,
    PIPE_BYTES,
    DescriptorSink,
    MemorySink,
    soon_on,
)
from tests.devices.console.console_board import ConsoleBoard
from tests.pyvmm.guest_agent.agent_driver import AgentDriver

Scenario = Callable[[AgentDriver], Coroutine[Any, Any, None]]


def with_agent(scenario: Scenario) -> Callable[[], None]:
    """Run `scenario` with a guest whose agent has answered."""

    @functools.wraps(scenario)
    def run() -> None:
        async def main() -> None:
            driver = AgentDriver()
            await driver.welcome()
            await asyncio.wait_for(scenario(driver), 20)

        asyncio.run(main())

    del run.__wrapped__  # pytest would read its parameters
    return run


@with_agent
async def test_a_command_gets_input_and_its_output_comes_on_two_streams(
    driver: AgentDriver,
) -> None:
    output, error = MemorySink(), MemorySink()
    command = driver.agent.start(
        ["cat", "-n"], output=output, error=error, environment={"A": "b"}, directory="/tmp"
    )
    number, fields, strings = await driver.run_request()
    assert fields[0] == 0
    assert fields[6:] == (2, 1)
    assert strings == [b"/tmp", b"cat", b"-n", b"A=b"]
    ports = fields[3:6]
    assert len(set(ports)) == 3
    command.send_input(b"hello")
    command.end_input()
    type_, _, payload = await driver.message()
    assert (type_, payload) == (Type.INPUT_END, struct.pack("<Q", 5))
    assert driver.take(ports[0]) == b"hello"
    driver.transmit(ports[1], b"out")
    driver.transmit(ports[2], b"err")
    driver.end(number, ports, value=7, written=(3, 3))
    result = await command.wait()
    assert (result.status, result.signal) == (7, None)
    assert (bytes(output.data), bytes(error.data)) == (b"out", b"err")


@with_agent
async def test_a_signal_is_reported_as_a_shell_does(driver: AgentDriver) -> None:
    command = driver.agent.start(["x"], output=MemorySink(), error=MemorySink())
    number, fields, _ = await driver.run_request()
    command.send_signal(signal.SIGINT)
    type_, for_command, payload = await driver.message()
    assert (type_, for_command, payload) == (Type.SIGNAL, number, struct.pack("<I", 2))
    driver.end(number, fields[3:6], EndKind.SIGNALED, signal.SIGINT)
    result = await command.wait()
    assert (result.status, result.signal) == (130, signal.SIGINT)


@pytest.mark.parametrize(
    ("kind", "value", "status"),
    [
        (EndKind.NOT_STARTED, errno.ENOENT, 127),
        (EndKind.NOT_STARTED, errno.EACCES, 126),
        (EndKind.NO_DIRECTORY, errno.ENOENT, 125),
        (EndKind.REFUSED, errno.EAGAIN, 125),
    ],
)
def test_a_command_that_cannot_start_has_the_status_of_env(
    kind: EndKind, value: int, status: int
) -> None:
    @with_agent
    async def scenario(driver: AgentDriver) -> None:
        command = driver.agent.start(["x"], output=MemorySink(), error=MemorySink())
        number, fields, _ = await driver.run_request()
        driver.end(number, fields[3:6], kind, value)
        with pytest.raises(CommandNotStarted, match=os.strerror(value)) as raised:
            await command.wait()
        assert raised.value.status == status
        assert isinstance(raised.value, WorkingDirectoryUnusable) == (kind is EndKind.NO_DIRECTORY)

    scenario()


@with_agent
async def test_a_terminal_is_one_port_with_a_size(driver: AgentDriver) -> None:
    output = MemorySink()
    command = driver.agent.start(
        ["sh"], output=output, error=MemorySink(), terminal=TerminalSize(24, 80)
    )
    number, fields, _ = await driver.run_request()
    assert fields[:3] == (1, 24, 80)
    assert len(set(fields[3:6])) == 1
    command.resize(TerminalSize(50, 132))
    type_, _, payload = await driver.message()
    assert (type_, payload) == (Type.RESIZE, struct.pack("<HH", 50, 132))
    command.send_input(b"ls\r")
    await driver.settle()
    assert driver.take(fields[3]) == b"ls\r"
    driver.transmit(fields[3], b"file\r\n")
    driver.end(number, fields[3:6], written=(6, 0))
    assert (await command.wait()).status == 0
    assert output.data == b"file\r\n"


@with_agent
async def test_ports_are_plugged_in_as_commands_need_them_and_used_again(
    driver: AgentDriver,
) -> None:
    async def one(number_of_commands: int) -> None:
        commands = [
            driver.agent.start(["x"], output=MemorySink(), error=MemorySink())
            for _ in range(number_of_commands)
        ]
        for _ in commands:
            await driver.settle(lambda: bool(driver.received))
            number, fields, _ = await driver.run_request()
            driver.end(number, fields[3:6])
        for command in commands:
            await command.wait()

    await one(4)
    assert len(driver.console.ports) == 1 + 12
    await one(4)
    assert len(driver.console.ports) == 1 + 12


@with_agent
async def test_a_slow_reader_stops_the_guest_and_loses_nothing(driver: AgentDriver) -> None:
    reader, writer = os.pipe()
    loop = asyncio.get_running_loop()
    sink = DescriptorSink(writer, soon_on(loop), lambda: command.advance())
    command = driver.agent.start(["x"], output=sink, error=MemorySink())
    number, fields, _ = await driver.run_request()
    chunk = bytes(range(256)) * 64
    sent = 0
    for _ in range(200):
        if not driver.transmit(fields[4], chunk):
            break
        sent += len(chunk)
        await driver.settle(lambda: True)
    assert fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ) == PIPE_BYTES
    assert sent <= 2 * MAX_WAITING_BYTES + PIPE_BYTES + len(chunk)
    sent += len(chunk)  # the buffer in flight
    driver.end(number, fields[3:6], written=(sent, 0))
    waiting = asyncio.create_task(command.wait())
    received = bytearray()

    def read() -> None:
        while len(received) < sent:
            received.extend(os.read(reader, 1 << 16))

    thread = threading.Thread(target=read)
    thread.start()
    while not waiting.done():
        await driver.settle(waiting.done)
    thread.join()
    assert bytes(received) == chunk * (sent // len(chunk))
    assert (await waiting).status == 0


@with_agent
async def test_a_reader_that_is_gone_closes_the_port(driver: AgentDriver) -> None:
    reader, writer = os.pipe()
    loop = asyncio.get_running_loop()
    sink = DescriptorSink(writer, soon_on(loop), lambda: command.advance())
    command = driver.agent.start(["yes"], output=sink, error=MemorySink())
    number, fields, _ = await driver.run_request()
    os.close(reader)
    driver.transmit(fields[4], b"y\n")
    port = driver.console.ports["pyvmm.1"]
    await driver.settle(lambda: port.host is None)
    assert port.host is None
    driver.end(number, fields[3:6], EndKind.SIGNALED, signal.SIGPIPE, written=(2, 0))
    assert (await command.wait()).status == 128 + signal.SIGPIPE
    assert isinstance(sink.error, BrokenPipeError)


@with_agent
async def test_output_that_arrives_for_a_reader_that_is_gone_delays_nothing(
    driver: AgentDriver,
) -> None:
    sink = MemorySink()
    command = driver.agent.start(["yes"], output=sink, error=MemorySink())
    number, fields, _ = await driver.run_request()
    driver.transmit(fields[4], b"y\n")
    await driver.settle(lambda: bool(sink.data))
    sink.error = BrokenPipeError()
    driver.transmit(fields[4], b"y\n")
    driver.end(number, fields[3:6], EndKind.SIGNALED, signal.SIGPIPE, written=(4, 0))
    async with asyncio.timeout(5):
        assert (await command.wait()).status == 128 + signal.SIGPIPE


@with_agent
async def test_input_waits_for_the_guest(driver: AgentDriver) -> None:
    command = driver.agent.start(["x"], output=MemorySink(), error=MemorySink())
    _, fields, _ = await driver.run_request()
    sent = received = 0
    while command.input_room_bytes >= 4096:
        command.send_input(bytes(4096))
        sent += 4096
    assert sent <= MAX_WAITING_BYTES + 17 * 4096
    rooms: list[int] = []
    command.on_input_room = lambda: rooms.append(command.input_room_bytes)
    for _ in range(100):
        received += len(driver.take(fields[3]))
        await driver.settle(lambda: True)
    assert received == sent
    assert rooms


@with_agent
async def test_missing_output_is_an_error(driver: AgentDriver) -> None:
    command = driver.agent.start(["x"], output=MemorySink(), error=MemorySink())
    number, fields, _ = await driver.run_request()
    before, client.OUTPUT_TIMEOUT_S = client.OUTPUT_TIMEOUT_S, 0.05
    try:
        driver.end(number, fields[3:6], written=(1, 0))
        with pytest.raises(OutputIncomplete):
            await command.wait()
    finally:
        client.OUTPUT_TIMEOUT_S = before


@pytest.mark.parametrize(
    "message",
    [
        struct.pack("<IHH", 1 << 31, Type.ENDED, 0),
        struct.pack("<IHH", 0, Type.RUN, 0),
        struct.pack("<IHHIIIQQ", 28, Type.ENDED, 0, 99, 0, 0, 0, 0),
        struct.pack("<IHHIQ", 12, Type.HELLO_REPLY, 0, 2, 0),
    ],
)
def test_a_hostile_agent_ends_every_command(message: bytes) -> None:
    @with_agent
    async def scenario(driver: AgentDriver) -> None:
        command = driver.agent.start(["x"], output=MemorySink(), error=MemorySink())
        driver.transmit(driver.control_port, message)
        with pytest.raises(AgentFailed):
            await command.wait()

    scenario()


@with_agent
async def test_reports_about_other_commands_are_ignored(driver: AgentDriver) -> None:
    command = driver.agent.start(["x"], output=MemorySink(), error=MemorySink())
    number, fields, _ = await driver.run_request()
    driver.end(number ^ 1, ())
    driver.end(number, fields[3:6], value=3)
    assert (await command.wait()).status == 3


@with_agent
async def test_closing_ends_commands(driver: AgentDriver) -> None:
    command = driver.agent.start(["x"], output=MemorySink(), error=MemorySink())
    driver.agent.close()
    with pytest.raises(AgentFailed, match="has ended"):
        await command.wait()


@with_agent
async def test_commands_that_no_guest_can_run_are_refused(driver: AgentDriver) -> None:
    def start(*arguments: str) -> None:
        driver.agent.start(arguments, output=MemorySink(), error=MemorySink())

    with pytest.raises(CommandUnusable, match="no command"):
        start()
    with pytest.raises(CommandUnusable, match="NUL"):
        start("a\0b")
    with pytest.raises(CommandUnusable, match="bytes long"):
        start("x" * MAX_PAYLOAD_BYTES)
    assert all(
        port.host is None for name, port in driver.console.ports.items() if name[-1] in "012"
    )


def test_a_guest_without_an_agent_is_noticed() -> None:
    async def main() -> None:
        board = ConsoleBoard(["pyvmm.agent"], console=False)
        agent = GuestAgent(board.console, threading.Lock(), asyncio.get_running_loop())
        with pytest.raises(AgentFailed, match="no agent has answered"):
            await agent.connect(0.01)
        board = ConsoleBoard([])
        with pytest.raises(AgentFailed, match="no port"):
            GuestAgent(board.console, threading.Lock(), asyncio.get_running_loop())

    asyncio.run(main())


def test_another_version_of_the_agent_is_refused() -> None:
    async def main() -> None:
        driver = AgentDriver()
        with pytest.raises(AgentFailed, match="version 2"):
            await driver.welcome(version=2)

    asyncio.run(main())
