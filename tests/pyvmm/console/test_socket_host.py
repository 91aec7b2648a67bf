# SPDX-License-Identifier: Apache-2.0
"""A port at a unix socket: clients that come and go, read slowly, or do not read at all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pyvmm.console.socket_host import PortServer
from pyvmm.sockets.unix import UnixListener
from tests.pyvmm.console.console_guest import BoardGuest, board_guest

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
BYTES = 1 << 20


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[BoardGuest]:
    async with board_guest() as guest:
        listener = UnixListener(path)
        server = PortServer(guest.port, listener)
        try:
            yield guest
        finally:
            server.close()
            listener.remove()


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 30))


async def told(guest: BoardGuest, *values: int) -> None:
    seen: list[int] = []
    while tuple(seen) != values:
        seen += guest.opens()
        await asyncio.sleep(0.001)


def test_binary_data_passes_both_ways_at_once(tmp_path: Path) -> None:
    output, keys = os.urandom(BYTES), os.urandom(BYTES)

    async def scenario() -> None:
        async with served(tmp_path / "s") as guest:
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
            await told(guest, 1)
            writer.write(keys)
            _, received, sent = await asyncio.gather(
                guest.write(output), guest.read(BYTES), reader.readexactly(BYTES)
            )
            assert (received, sent) == (keys, output)
            writer.close()
            await told(guest, 0)

    run(scenario)


def test_a_client_that_does_not_read_stops_the_guest(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "s") as guest:
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(tmp_path / "s"))
            await told(guest, 1)
            data = os.urandom(BYTES)
            writing = asyncio.create_task(guest.write(data))
            before = -1
            while guest.model.output_bytes != before:
                before = guest.model.output_bytes
                await asyncio.sleep(0.2)
            assert before < BYTES // 2, "the rest is in the guest's queue"
            assert not writing.done()
            client.setblocking(False)
            received = b""
            while len(received) < BYTES:
                received += await asyncio.get_running_loop().sock_recv(client, 1 << 16)
            await writing
            assert received == data
            client.close()

    run(scenario)


def test_a_guest_that_does_not_read_stops_the_client(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "s") as guest:
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(tmp_path / "s"))
            client.setblocking(False)
            sent = 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    while True:
                        await asyncio.get_running_loop().sock_sendall(client, b"x" * 4096)
                        sent += 4096
            assert sent < BYTES
            client.close()
            assert len(await guest.read(sent)) >= sent, "it is taken after the client's end, too"

    run(scenario)


def test_clients_are_served_one_after_the_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "s") as guest:
            path = str(tmp_path / "s")
            first, second = [await asyncio.open_unix_connection(path) for _ in range(2)]
            await guest.write(b"for the first")
            assert await first[0].readexactly(13) == b"for the first"
            first[1].write(b"the end...")
            first[1].close()
            assert await guest.read(10) == b"the end..."
            await told(guest, 1, 0, 1)
            await guest.write(b"for the second")
            assert await second[0].readexactly(14) == b"for the second"
            second[1].close()

    run(scenario)


def test_a_client_that_disappears_does_not_stop_the_guest(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "s") as guest:
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(tmp_path / "s"))
            await told(guest, 1)
            writing = asyncio.create_task(guest.write(bytes(BYTES)))
            await asyncio.sleep(0.05)
            client.close()
            await writing
            await told(guest, 0)
            assert guest.model.output_bytes + guest.model.discarded_bytes == BYTES

    run(scenario)


def test_closing_the_server_disconnects_the_client(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "s") as guest:
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
            await told(guest, 1)
        assert await reader.read() == b""
        assert guest.opens() == [0]
        writer.close()

    run(scenario)


def test_unplugging_the_port_disconnects_its_client_and_the_next_ones(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "s") as guest:
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
            await told(guest, 1)
            with guest.lock:
                guest.board.console.remove_port(guest.model)
            assert await reader.read() == b""
            late_reader, late_writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
            assert await late_reader.read() == b""
            writer.close()
            late_writer.close()

    run(scenario)
