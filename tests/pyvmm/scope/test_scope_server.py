# SPDX-License-Identifier: Apache-2.0
"""The server of the page: requests without the token, other sites and floods are refused."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm.memory.rss import resident_bytes
from pyvmm.scope import guard
from pyvmm.scope.connections import MAX_CONNECTIONS
from pyvmm.scope.errors import PortInUse
from pyvmm.scope.recorded_guest import RecordedGuest
from pyvmm.scope.server import MAX_HEADER_BYTES, ScopeServer
from pyvmm.trace.errors import RecordingUnusable
from pyvmm.trace.recording import Recording
from pyvmm.trace.recording_format import DATA_OFFSET, FileHeader
from pyvmm.units import MIB
from tests.pyvmm.scope.conftest import MARKUP
from tests.pyvmm.scope.scope_client import get, get_bytes


def run(path: Path, scenario: Callable[[ScopeServer], Awaitable[None]]) -> None:
    async def main() -> None:
        server = ScopeServer(RecordedGuest(path))
        try:
            await asyncio.wait_for(scenario(server), 60)
        finally:
            await server.close()

    asyncio.run(main())


def test_the_chunks_are_those_of_the_file(recorded: Path) -> None:
    async def scenario(server: ScopeServer) -> None:
        answer = await get(server, "api/chunks")
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.body == recorded.read_bytes()[4096:]

    run(recorded, scenario)


def test_the_source_is_described(recorded: Path) -> None:
    async def scenario(server: ScopeServer) -> None:
        document = (await get(server, "api/source")).json
        assert (document["live"], document["name"]) == (False, "boot.rec")
        assert document["start-ns"] > 0
        assert {"inflate", "chain"} <= {kind["name"] for kind in document["kinds"]}

    run(recorded, scenario)


@pytest.mark.parametrize(
    ("noted", "shown"),
    [
        (4 << 30, 4 << 30),
        (None, None),
        (0, None),
        (-1, None),
        (1 << 60, None),
        ("1G", None),
        (True, None),
    ],
)
def test_the_ram_of_a_recording_is_described_if_it_is_known(
    recorded: Path, noted: object, shown: int | None
) -> None:
    data = recorded.read_bytes()
    header = FileHeader(0, {"ram-bytes": noted})
    recorded.write_bytes(header.encode() + data[DATA_OFFSET:])
    document = RecordedGuest(recorded).describe()
    assert document["memory"] == shown
    assert sum(size for _, size in document["ram"]) == (shown or 0)


def test_a_recording_that_grows_is_read_again(recorded: Path) -> None:
    async def scenario(server: ScopeServer) -> None:
        whole = recorded.read_bytes()
        recorded.write_bytes(whole[:-64])
        cut = await get(server, "api/source")
        assert cut.json["notes"] == [
            "the last part is incomplete, as its writer was stopped, and is left out"
        ]
        recorded.write_bytes(whole)
        assert (await get(server, "api/chunks")).body == whole[4096:]

    run(recorded, scenario)


def test_a_recording_that_is_damaged_meanwhile_is_an_error(recorded: Path) -> None:
    async def scenario(server: ScopeServer) -> None:
        recorded.write_bytes(b"something else")
        for path in ("api/source", "api/chunks"):
            answer = await get(server, path)
            assert answer.status == 409
            assert "it is no recording" in answer.json["error"]

    run(recorded, scenario)


def test_a_damaged_recording_is_refused_before_the_server_starts(recorded: Path) -> None:
    data = bytearray(recorded.read_bytes())
    data[4096 + 60] ^= 1
    recorded.write_bytes(data)
    with pytest.raises(RecordingUnusable, match="damaged"):
        RecordedGuest(recorded)


def test_answers_forbid_all_that_the_page_does_not_need(recorded: Path) -> None:
    async def scenario(server: ScopeServer) -> None:
        for answer in (await get(server, "api/source"), await get(server, token="wrong")):
            for name, value in guard.HEADERS.items():
                assert answer.headers[name.lower()] == value
            assert "server" not in answer.headers
            assert "access-control-allow-origin" not in answer.headers

    run(recorded, scenario)


@pytest.mark.parametrize("path", ["", "page/main.js", "api/source", "api/chunks", "api/live"])
def test_requests_without_the_token_and_other_sites_are_refused(recorded: Path, path: str) -> None:
    async def scenario(server: ScopeServer) -> None:
        own = f"127.0.0.1:{server.port}"
        for token in ("", "wrong", server.token[:-1], server.token + "x", "%00", "\xff"):
            assert (await get(server, path, token=token)).status == 404
        for host in ("evil.example", "127.0.0.1", f"evil.example:{server.port}", own + ".", None):
            assert (await get(server, path, headers={"Host": host})).status in (400, 421)
        for origin in ("http://evil.example", "null", f"https://{own}", f"http://{own}.evil"):
            assert (await get(server, path, headers={"Origin": origin})).status == 403

    run(recorded, scenario)


def test_the_own_origin_and_localhost_are_accepted(recorded: Path) -> None:
    async def scenario(server: ScopeServer) -> None:
        own = f"localhost:{server.port}"
        answer = await get(server, "api/source", headers={"Host": own, "Origin": f"http://{own}"})
        assert answer.status == 200

    run(recorded, scenario)


def test_only_files_of_the_page_are_served(recorded: Path) -> None:
    async def scenario(server: ScopeServer) -> None:
        for name in ("__init__.py", "..%2fserver.py", "../server.py", "/etc/passwd", "missing.js"):
            assert (await get(server, f"page/{name}")).status == 404
        assert (await get(server, "api/source", method="POST")).status == 405

    run(recorded, scenario)


def test_errors_repeat_nothing_of_the_request(recorded: Path) -> None:
    async def scenario(server: ScopeServer) -> None:
        answer = await get(server, "page/<script>.js")
        assert answer.status == 404
        assert b"<" not in answer.body

    run(recorded, scenario)


def test_a_thousand_connections_without_the_token_do_not_lock_the_person_out(
    recorded: Path,
) -> None:
    async def scenario(server: ScopeServer) -> None:
        before = resident_bytes()
        others = []
        for _ in range(1000):
            with contextlib.suppress(OSError):
                others.append(await asyncio.open_connection("127.0.0.1", server.port))
        assert (await get(server, "api/source")).status == 200
        closed = 0
        for reader, writer in others:
            with contextlib.suppress(OSError, TimeoutError):
                closed += not await asyncio.wait_for(reader.read(1), 0.001)
            writer.close()
        assert closed >= 1000 - 2 * MAX_CONNECTIONS
        assert resident_bytes() - before < 48 * MIB

    run(recorded, scenario)


def test_a_request_without_end_is_bounded(recorded: Path) -> None:
    async def scenario(server: ScopeServer) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        with contextlib.suppress(OSError):
            for _ in range(1 << 10):
                writer.write(b"GET / HTTP/1.1\r\n" + b"x" * MAX_HEADER_BYTES)
                await writer.drain()
        with contextlib.suppress(OSError):
            assert await reader.read() in (b"", b"HTTP/1.1 400 Bad Request\r\n\r\n")
        assert (await get(server, "api/source")).status == 200

    run(recorded, scenario)


def test_a_recording_that_changes_while_it_is_sent_does_not_look_complete(recorded: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"x" * 64
        raise RecordingUnusable("it has changed while it was read")

    async def scenario(server: ScopeServer) -> None:
        server.site.source.chunks = chunks  # type: ignore[method-assign, union-attr]
        answer = await get_bytes(server, "api/chunks")
        assert b"x" * 64 in answer
        assert not answer.endswith(b"0\r\n\r\n")

    run(recorded, scenario)


def test_a_browser_that_does_not_read_costs_a_chunk(
    recorded: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(server: ScopeServer) -> None:
        chunk = b"x" * MIB
        server.site.source.chunks = lambda: (chunk for _ in range(1000))  # type: ignore[method-assign, union-attr]
        before = resident_bytes()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        own = f"127.0.0.1:{server.port}"
        writer.write(f"GET /{server.token}/api/chunks HTTP/1.1\r\nHost: {own}\r\n\r\n".encode())
        await reader.readexactly(64)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(0.5)
        assert resident_bytes() - before < 32 * MIB
        assert (await get(server, "api/source")).status == 200
        writer.transport.abort()
        await asyncio.sleep(0.1)
        assert not caplog.records, "the page may be closed while it loads"

    run(recorded, scenario)


def test_other_requests_are_served_while_a_recording_is_read(recorded: Path) -> None:
    async def scenario(server: ScopeServer) -> None:
        source = server.site.source
        read, describe, chunks = threading.Event(), source.describe, source.chunks  # type: ignore[union-attr]

        def slow_description() -> dict[str, Any]:
            assert read.wait(30)
            return describe()

        def slow_chunks() -> Iterator[bytes]:
            assert read.wait(30)
            yield from chunks()

        source.describe = slow_description  # type: ignore[method-assign]
        source.chunks = slow_chunks  # type: ignore[method-assign, union-attr]
        answers = [asyncio.create_task(get(server, f"api/{name}")) for name in ("source", "chunks")]
        assert (await get(server, "page/main.js")).status == 200
        assert not any(answer.done() for answer in answers)
        read.set()
        assert [(await answer).status for answer in answers] == [200, 200]

    run(recorded, scenario)


def test_the_file_is_closed_when_a_page_that_loads_is_closed(recorded: Path) -> None:
    closed = threading.Event()

    def chunks() -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * MIB
        finally:
            closed.set()

    async def scenario(server: ScopeServer) -> None:
        server.site.source.chunks = chunks  # type: ignore[method-assign, union-attr]
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        own = f"127.0.0.1:{server.port}"
        writer.write(f"GET /{server.token}/api/chunks HTTP/1.1\r\nHost: {own}\r\n\r\n".encode())
        await reader.readexactly(64)
        writer.transport.abort()
        while not closed.is_set():
            await asyncio.sleep(0.01)

    run(recorded, scenario)


def test_a_port_in_use_is_one_error(recorded: Path) -> None:
    async def scenario(server: ScopeServer) -> None:
        with pytest.raises(PortInUse, match=f"port {server.port} cannot be used"):
            ScopeServer(RecordedGuest(recorded), server.port)

    run(recorded, scenario)


def test_text_of_guests_is_data_in_the_chunks(recorded: Path) -> None:
    with Recording(recorded) as recording:
        assert MARKUP in [event.fields.get("why") for event in recording.events()]
