# SPDX-License-Identifier: Apache-2.0
"""The option --port, and the terminal as the virtio console."""

from __future__ import annotations

import asyncio
import os
import pty
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from click.testing import CliRunner

from devices.console.queues import transmit_queue
from pyvmm.cli.console.output_file import open_for_appending
from pyvmm.cli.console.ports import (
    PortHosts,
    PortOption,
    connect_terminal,
    parse_ports,
    resize_to_window,
)
from pyvmm.cli.console.terminal import ConsoleIo
from pyvmm.cli.errors import CommandError
from pyvmm.cli.main import main
from pyvmm.console.ports import LockedPort
from pyvmm.console.writer import ConsoleWriter
from pyvmm.errors import UserError
from pyvmm.vm import VirtualMachine
from tests.pyvmm.console.console_guest import BoardGuest, board_guest


def vm(guest: BoardGuest, name: str = "data") -> VirtualMachine:
    """Return a VM that has just the ports of `guest`."""
    ports = {name: LockedPort(guest.board.console.ports[name], guest.lock)}
    return cast(VirtualMachine, SimpleNamespace(ports=ports, config=SimpleNamespace(ports=[name])))


def test_ports_are_named_and_have_a_socket_or_a_file() -> None:
    assert parse_ports(["data=unix:/run/data", "org.log=file:log=1.txt"]) == [
        PortOption("data", Path("/run/data"), is_socket=True),
        PortOption("org.log", Path("log=1.txt"), is_socket=False),
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["data"], "cannot be connected to ''"),
        (["=unix:/x"], "cannot be named ''"),
        (["a/b=unix:/x"], "cannot be named 'a/b'"),
        (["console=unix:/x"], "cannot be named 'console'"),
        (["data=tcp:host:1"], "cannot be connected to 'tcp:host:1'"),
        (["data=file:"], "cannot be connected to 'file:'"),
        (["data=unix:"], "is not a socket address"),
        (["data=file:a", "data=file:b"], "two ports are named 'data'"),
    ],
)
def test_an_impossible_port_is_refused(values: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_ports(values)


def test_output_is_appended_to_a_file(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"before ")

    async def scenario() -> None:
        with ExitStack() as stack:
            async with board_guest() as guest:
                hosts = PortHosts(stack, [PortOption("data", file, is_socket=False)])
                hosts.connect(vm(guest))
                await guest.write(b"after")
                hosts.disconnect()

    asyncio.run(scenario())
    assert file.read_bytes() == b"before after"


def test_a_socket_serves_the_next_machine_after_the_first(tmp_path: Path) -> None:
    async def scenario() -> None:
        with ExitStack() as stack:
            hosts = PortHosts(stack, [PortOption("data", tmp_path / "s", is_socket=True)])
            for output in (b"first", b"second"):
                async with board_guest() as guest:
                    hosts.connect(vm(guest))
                    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
                    while not guest.opens():
                        await asyncio.sleep(0.001)
                    await guest.write(output)
                    assert await reader.readexactly(len(output)) == output
                    hosts.disconnect()
                    writer.close()

    asyncio.run(scenario())
    assert not (tmp_path / "s").exists()


def test_a_port_that_the_guest_does_not_have_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        with ExitStack() as stack:
            async with board_guest() as guest:
                hosts = PortHosts(stack, [PortOption("other", tmp_path / "log", is_socket=False)])
                with pytest.raises(CommandError, match="no port 'other'") as refused:
                    hosts.connect(vm(guest))
                assert "data" in refused.value.remedy

    asyncio.run(scenario())


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        with ExitStack() as stack:
            PortHosts(stack, [PortOption("data", tmp_path / "no" / "log", is_socket=False)])

    with pytest.raises(CommandError, match="No such file"):
        asyncio.run(scenario())


def test_lost_output_of_a_port_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        with ExitStack() as stack:
            async with board_guest() as guest:
                hosts = PortHosts(stack, [PortOption("data", Path("/dev/full"), is_socket=False)])
                hosts.connect(vm(guest))
                await guest.write(bytes(1 << 18))
                hosts.disconnect()

    asyncio.run(scenario())
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == (
        "the output of port data cannot be written: [Errno 28] No space left on device"
    )


def test_the_terminal_is_the_console_with_its_window_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    master, slave = pty.openpty()
    sizes = {"terminal": os.terminal_size((132, 43))}
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: sizes["terminal"])

    async def scenario() -> None:
        async with board_guest() as guest:
            loop = asyncio.get_running_loop()
            io = ConsoleIo(loop, slave, ConsoleWriter(slave), lambda data: 0, lambda action: None)
            port = connect_terminal(vm(guest, "console"), io)
            console = guest.board.console.ports["console"]
            assert console.window_size == (132, 43)
            sizes["terminal"] = os.terminal_size((90, 30))
            resize_to_window(port)
            assert console.window_size == (90, 30)
            queue = transmit_queue(0)
            with guest.lock:
                guest.driver.queues[queue].add([b"hello"])
                guest.driver.notify(queue)
            assert await asyncio.to_thread(os.read, master, 100) == b"hello"
            io.close()

    asyncio.run(scenario())
    os.close(master)
    os.close(slave)


def test_the_console_of_a_snapshot_cannot_be_changed(tmp_path: Path) -> None:
    (tmp_path / "vm.snap").write_bytes(b"")
    result = CliRunner().invoke(
        main, ["run", "--restore", str(tmp_path / "vm.snap"), "--console", "virtio"]
    )
    assert result.exit_code == 2


def test_a_pipe_without_a_reader_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(CommandError, match="it is a pipe without a reader"):
        open_for_appending(pipe, "--log")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = open_for_appending(pipe, "--log")
    assert os.get_blocking(writer)
    os.write(writer, b"log")
    assert os.read(reader, 9) == b"log"
    os.close(writer)
    os.close(reader)
