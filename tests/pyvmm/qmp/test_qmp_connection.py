# SPDX-License-Identifier: Apache-2.0
"""Clients that close half of their connection, hang up, send too much or never read."""

import asyncio
import gc
import json
import socket
from pathlib import Path

import pytest

from pyvmm.qmp import connection
from pyvmm.qmp.connection import (
    BATCH_REQUESTS,
    MAX_TOTAL_INPUT_BYTES,
    MAX_TOTAL_UNSENT_BYTES,
    Connection,
)
from pyvmm.qmp.json_stream import MAX_MESSAGE_BYTES
from pyvmm.qmp.server import ControlServer
from pyvmm.units import MIB
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm
from tests.pyvmm.qmp.qmp_scenarios import Serve, connect, negotiate, receive, waiting_command


@pytest.mark.parametrize("request_count", [1, 3])
def test_a_client_that_closes_its_sending_side_gets_the_replies_of_waiting_commands(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, request_count: int
) -> None:
    answers = waiting_command(monkeypatch)

    async def scenario(vm: InMemoryVm, path: Path) -> None:
        reader, writer = await connect(path)
        writer.write(b'{"execute": "qmp_capabilities"}')
        writer.write(b'{"execute": "wait"}{"execute": "query-status"}' * request_count)
        writer.write_eof()
        assert await receive(reader) == {"return": {}}
        for number in range(request_count):
            while len(answers) <= number:
                await asyncio.sleep(0)
            await asyncio.sleep(0.05)
            answers[number].set_result(number)
            assert await receive(reader) == {"return": number}
            assert (await receive(reader))["return"]["running"]
        assert await reader.read() == b""
        writer.close()

    serve(scenario)


@pytest.mark.parametrize("more", [b"", b'{"execute": "query-status"}'])
def test_a_hang_up_cancels_the_command_that_waits(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, more: bytes
) -> None:
    """Also with further requests behind it, or after the client has closed its sending side."""
    answers = waiting_command(monkeypatch)

    async def scenario(vm: InMemoryVm, path: Path) -> None:
        _, writer = await negotiate(path)
        writer.write(b'{"execute": "wait"}' + more)
        writer.write_eof()
        while not answers:
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        assert not answers[0].done()
        writer.close()
        await asyncio.wait(answers)
        assert answers[0].cancelled()

    serve(scenario)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("error:coroutine")
def test_a_command_is_cancelled_before_it_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = waiting_command(monkeypatch)
    serve_batch = Connection._serve

    async def main() -> None:
        server = ControlServer(InMemoryVm(), tmp_path / "qmp")
        await server.start()
        closing: list[asyncio.Task[None]] = []

        def serve_and_close(self: Connection) -> None:
            serve_batch(self)
            if self._waiting is not None:
                self.close()
                closing.append(asyncio.ensure_future(server.close()))

        _, writer = await negotiate(tmp_path / "qmp")
        monkeypatch.setattr(Connection, "_serve", serve_and_close)
        writer.write(b'{"execute": "wait"}')
        while not closing:
            await asyncio.sleep(0)
        await closing[0]
        writer.close()

    asyncio.run(main())
    gc.collect()
    assert [answer.cancelled() for answer in answers] == [True]


@pytest.mark.parametrize(("requests", "request_bytes"), [(500, 0), (8, 60_000)])
def test_a_client_with_many_requests_is_served_in_batches(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, requests: int, request_bytes: int
) -> None:
    """Between two batches, others get their turn, and nothing more is read from it."""
    batches: list[int] = []
    serve_batch, serve_next = Connection._serve, Connection._serve_next

    def counted_batch(self: Connection) -> None:
        batches.append(0)
        serve_batch(self)

    def counted_next(self: Connection) -> bool:
        served = serve_next(self)
        batches[-1] += served
        return served

    monkeypatch.setattr(Connection, "_serve", counted_batch)
    monkeypatch.setattr(Connection, "_serve_next", counted_next)

    async def scenario(vm: InMemoryVm, path: Path) -> None:
        reader, writer = await negotiate(path)
        request = b'{"execute": "query-status", "id": "' + b"x" * request_bytes + b'"}'
        writer.write(request * requests)
        for _ in range(requests):
            assert "return" in await receive(reader)
        writer.close()

    serve(scenario)
    assert sum(batches) == requests + 1
    assert max(batches) <= (2 if request_bytes else BATCH_REQUESTS)


def test_unfinished_requests_of_all_clients_together_are_bounded(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        reader, writer = await negotiate(path)
        writer.write(b'{"execute": ')
        unfinished = b'{"a": "' + b"x" * (MAX_MESSAGE_BYTES - 100)
        hoarders = [await negotiate(path) for _ in range(8)]
        for _, hoarder in hoarders:
            hoarder.write(unfinished)
        held = MAX_TOTAL_INPUT_BYTES // len(unfinished)
        while len(caplog.messages) < len(hoarders) - held:
            await asyncio.sleep(0.01)
        writer.write(b'"query-balloon"}')
        assert "return" in await receive(reader)
        writer.close()
        for _, hoarder in hoarders:
            hoarder.close()

    serve(scenario)
    assert len(caplog.messages) == 8 - MAX_TOTAL_INPUT_BYTES // MAX_MESSAGE_BYTES
    assert "bytes of unfinished requests of all clients are its" in caplog.text


def test_a_waiting_request_counts_as_unfinished(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = waiting_command(monkeypatch)
    monkeypatch.setattr(connection, "MAX_TOTAL_INPUT_BYTES", 100_000)

    async def scenario(vm: InMemoryVm, path: Path) -> None:
        clients = [await negotiate(path) for _ in range(3)]
        for _, writer in clients:
            writer.write(b'{"execute": "wait", "id": "' + b"x" * 40_000 + b'"}')
        while not caplog.messages:
            await asyncio.sleep(0.01)
        assert sum(answer.cancelled() for answer in answers) <= 1
        for _, writer in clients:
            writer.close()

    serve(scenario)
    assert len(caplog.messages) == 1


def test_unread_replies_of_all_clients_together_are_bounded(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        request = b'{"execute": "stop", "id": "' + "é".encode() * (450_000) + b'"}'
        reply_bytes = 6 * 450_000
        clients = [socket.socket(socket.AF_UNIX) for _ in range(6)]
        for client in clients:
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, str(path))
            await asyncio.get_running_loop().sock_sendall(
                client, b'{"execute": "qmp_capabilities"}' + request
            )
        while len(caplog.messages) < len(clients) - MAX_TOTAL_UNSENT_BYTES // reply_bytes:
            await asyncio.sleep(0.01)
        reader, writer = await negotiate(path)
        writer.write(b'{"execute": "query-balloon"}')
        assert "return" in await receive(reader)
        writer.close()
        for client in clients:
            client.close()

    serve(scenario)
    assert "bytes of unread output of all clients are its" in caplog.text


def test_a_request_of_many_strings_is_refused_and_the_next_line_served(serve: Serve) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        reader, writer = await negotiate(path)
        document = b'{"execute": "query-status", "id": [' + b'"",' * (MIB // 4) + b'""]}\n'
        writer.write(document + b'{"execute": "query-status", "id": 1}')
        error = (await receive(reader))["error"]
        assert error == {"class": "GenericError", "desc": "JSON token count limit exceeded"}
        assert (await receive(reader))["id"] == 1
        writer.close()

    serve(scenario)


def test_invalid_text_is_refused_before_a_command_sees_it(serve: Serve) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        reader, writer = await negotiate(path)
        for member in ("execute", "id", "arguments"):
            for text in ("\0", "unix:/tmp/\ud800"):
                request = {"execute": "migrate", "arguments": {"uri": "unix:/m"}, "id": 1}
                request[member] = {"uri": text} if member == "arguments" else text
                writer.write(json.dumps(request).encode())
                error = (await receive(reader))["error"]
                assert error["desc"] == "JSON parse error, invalid character in a string"
        assert vm.migrations.status == "none"
        writer.close()

    serve(scenario)
