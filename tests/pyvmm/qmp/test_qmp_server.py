# SPDX-License-Identifier: Apache-2.0
"""The control socket over real unix sockets: with QEMU's client library and misbehaving clients."""

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import EventListener, ExecuteError, QMPClient

from pyvmm.qmp import server as server_module
from pyvmm.qmp.messages import QmpError
from pyvmm.qmp.server import ControlServer
from pyvmm.units import MIB
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm
from tests.pyvmm.qmp.qmp_scenarios import Serve, connect, negotiate, receive, waiting_command


async def actual_bytes(client: QMPClient) -> int:
    """Return the size that the client library reads, as a program for QEMU does."""
    answer: Any = await client.execute("query-balloon")
    actual: int = answer["actual"]
    return actual


def test_qemus_client_library_controls_a_vm(serve: Serve) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        client = QMPClient("test")
        await client.connect(str(path))
        try:
            with client.listener(("BALLOON_CHANGE",)) as listener:
                assert await actual_bytes(client) == 1024 * MIB
                assert await client.execute("balloon", {"value": 256 * MIB}) == {}
                await drain_until(listener, 256 * MIB)
            assert await actual_bytes(client) == 256 * MIB
            with pytest.raises(ExecuteError, match="expects a size"):
                await client.execute("balloon", {"value": -5})
            with pytest.raises(ExecuteError, match="nosuch has not been found"):
                await client.execute("nosuch")
            assert await client.execute("query-status") == {"status": "running", "running": True}
        finally:
            await client.disconnect()

    serve(scenario)


async def drain_until(listener: EventListener, actual_bytes: int) -> None:
    async for event in listener:
        if event["data"] == {"actual": actual_bytes}:
            return


def test_quit_is_replied_to_before_the_server_closes(tmp_path: Path) -> None:
    async def main() -> None:
        vm = InMemoryVm()
        server = ControlServer(vm, tmp_path / "qmp")
        await server.start()
        end = asyncio.Event()
        vm.on_quit = end.set
        client = QMPClient("test")
        await client.connect(str(tmp_path / "qmp"))
        execution = asyncio.create_task(client.execute("quit"))
        await asyncio.wait_for(end.wait(), 10)
        await server.close()
        assert await asyncio.wait_for(execution, 10) == {}
        with pytest.raises(EOFError):  # raised by the library when the server closes
            await client.disconnect()

    asyncio.run(main())


def test_events_are_sent_to_all_negotiated_clients(serve: Serve) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        first, second = await negotiate(path), await negotiate(path)
        silent = await connect(path)
        first[1].write(b'{"execute": "stop", "id": 1}')
        event = await receive(first[0])
        assert event["event"] == "STOP"
        assert set(event["timestamp"]) == {"seconds", "microseconds"}
        assert await receive(first[0]) == {"return": {}, "id": 1}
        assert await receive(second[0]) == event
        silent[1].write(b'{"execute": "cont"}')
        assert (await receive(silent[0]))["error"]["class"] == "CommandNotFound"
        assert vm.status == "paused"
        for _, writer in (first, second, silent):
            writer.close()

    serve(scenario)


def test_balloon_changes_are_rate_limited(serve: Serve) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        reader, writer = await negotiate(path)
        for actual in range(1000):
            vm.announce("BALLOON_CHANGE", actual=actual)
        assert (await receive(reader))["data"] == {"actual": 0}
        assert (await receive(reader))["data"] == {"actual": 999}
        writer.close()

    serve(scenario)


def test_the_last_balloon_change_is_delivered_at_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        vm = InMemoryVm()
        server = ControlServer(vm, tmp_path / "qmp")
        await server.start()
        reader, _ = await negotiate(tmp_path / "qmp")
        for actual in range(3):
            vm.announce("BALLOON_CHANGE", actual=actual)
        await server.close()
        lines = (await asyncio.wait_for(reader.read(), 10)).splitlines()
        assert [json.loads(line)["data"]["actual"] for line in lines] == [0, 2]

    asyncio.run(main())


def test_invalid_requests_do_not_end_the_session(serve: Serve) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        reader, writer = await negotiate(path)
        bad = [b"[]\n", b"nonsense\n", b'{"execute": 1}', b'{"a":]}\n', b'{"execute": "x"}']
        for data in bad:
            writer.write(data)
            assert "error" in await receive(reader)
        writer.write(b'{"execute": "query-status", "id": 9}')
        assert (await receive(reader))["id"] == 9
        writer.close()

    serve(scenario)


def test_requests_of_a_client_that_does_not_read_are_not_buffered(
    serve: Serve,
) -> None:
    """A client that sends requests without end and reads nothing blocks; others do not."""

    async def scenario(vm: InMemoryVm, path: Path) -> None:
        flood = socket.socket(socket.AF_UNIX)
        flood.connect(str(path))
        flood.setblocking(False)
        request = b'{"execute": "query-commands"}\n' * 1000
        flood.send(b'{"execute": "qmp_capabilities"}')
        sent = blocked = 0
        while blocked < 50:
            try:
                sent += flood.send(request)
                blocked = 0
            except BlockingIOError:
                blocked += 1
            await asyncio.sleep(0)
        assert sent < 8 * MIB
        reader, writer = await negotiate(path)
        writer.write(b'{"execute": "query-balloon"}')
        assert "return" in await receive(reader)
        # An event does not disconnect it: every request is replied to once it reads.
        vm.announce("RESUME")
        whole_requests = 0
        flood_reader, flood_writer = await asyncio.open_unix_connection(sock=flood, limit=1 << 22)
        assert "QMP" in await receive(flood_reader)
        assert await receive(flood_reader) == {"return": {}}
        while whole_requests < sent // 30:
            whole_requests += "return" in await receive(flood_reader)
        flood_writer.close()
        writer.close()

    serve(scenario)


def test_a_client_that_reads_no_events_is_disconnected(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        stalled = await negotiate(path)
        stalled[0]._transport.pause_reading()  # type: ignore[attr-defined]
        reader, writer = await negotiate(path)
        for number in range(200):
            vm.announce("STOP", padding="x" * 100_000, number=number)
            assert (await receive(reader))["data"]["number"] == number
        assert "control client disconnected" in caplog.text
        assert caplog.text.count("disconnected") == 1
        writer.close()
        stalled[1].close()

    serve(scenario)


def test_a_client_that_disconnects_does_not_affect_others(
    serve: Serve,
) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        for data in (b"", b'{"exec', b'{"execute": "qmp_capabilities"}' * 100):
            _, writer = await connect(path)
            writer.write(data)
            writer.transport.abort()
        reader, writer = await negotiate(path)
        writer.write(b'{"execute": "stop"}')
        assert (await receive(reader))["event"] == "STOP"
        writer.close()

    serve(scenario)


def test_a_client_that_does_not_read_cannot_delay_the_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_CLOSE_TIMEOUT_S", 0.1)

    async def main() -> None:
        vm = InMemoryVm()
        server = ControlServer(vm, tmp_path / "qmp")
        await server.start()
        reader, _ = await negotiate(tmp_path / "qmp")
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(20):
            vm.announce("STOP", padding="x" * 100_000)
        await asyncio.wait_for(server.close(), 5)

    asyncio.run(main())
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_waits_delays_its_own_client_only(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = waiting_command(monkeypatch)

    async def scenario(vm: InMemoryVm, path: Path) -> None:
        (reader, writer), (other, other_writer) = await negotiate(path), await negotiate(path)
        writer.write(b'{"execute": "wait", "id": 1} {"execute": "query-status", "id": 2}')
        other_writer.write(b'{"execute": "query-status"}')
        assert "return" in await receive(other)
        assert len(answers) == 1
        vm.announce("STOP")
        assert (await receive(reader))["event"] == "STOP", "events still arrive"
        answers[0].set_result(42)
        assert await receive(reader) == {"return": 42, "id": 1}
        assert (await receive(reader))["id"] == 2
        writer.write(b'{"execute": "wait", "id": 3}')
        while len(answers) < 2:
            await asyncio.sleep(0)
        answers[1].set_exception(QmpError("no answer"))
        assert (await receive(reader))["error"]["desc"] == "no answer"
        writer.close()
        other_writer.close()

    serve(scenario)


@pytest.mark.parametrize("closed_by", ["client", "server"])
def test_a_command_that_waits_is_cancelled_with_its_connection(
    closed_by: str, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = waiting_command(monkeypatch)

    async def scenario(vm: InMemoryVm, path: Path) -> None:
        _, writer = await negotiate(path)
        writer.write(b'{"execute": "wait"}')
        while not answers:
            await asyncio.sleep(0)
        if closed_by == "client":
            writer.close()
            await asyncio.wait([answers[0]])

    serve(scenario)
    assert answers[0].cancelled()
