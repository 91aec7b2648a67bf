# SPDX-License-Identifier: Apache-2.0
"""The scope of a guest that runs: events, memory, and the end of the guest."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import HTTPClientError
from tornado.websocket import WebSocketClientConnection

from pyvmm.qmp.errors import NotQmpSocket
from pyvmm.scope import history, live_guest
from pyvmm.scope.errors import EventsUnsupported, GuestNotWatched
from pyvmm.scope.guest_memory import heads_in_flight
from pyvmm.scope.live_guest import LiveGuest
from pyvmm.scope.live_socket import MAX_MESSAGES_PER_S
from pyvmm.scope.qmp_link import QmpLink
from pyvmm.scope.server import MAX_MESSAGE_BYTES, ScopeServer
from pyvmm.trace import recording_format
from pyvmm.trace.recording_format import decode_chunk, decode_chunk_header
from pyvmm.trace.stream import TraceEvent, events_of
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm
from tests.pyvmm.qmp.qmp_scenarios import Serve
from tests.pyvmm.scope.conftest import Scenario
from tests.pyvmm.scope.scope_client import get, open_socket


def events_in(chunk: bytes) -> list[TraceEvent]:
    header = decode_chunk_header(chunk)
    assert header is not None
    return [*events_of(decode_chunk(header, chunk))]


async def next_chunk(page: WebSocketClientConnection) -> bytes:
    while not isinstance(message := await page.read_message(), bytes):
        assert message is not None
    return message


async def next_text(page: WebSocketClientConnection, kind: str) -> dict[str, Any]:
    """Return the next message of this type."""
    while True:
        message = await page.read_message()
        assert message is not None, page.close_reason
        if isinstance(message, str) and (document := json.loads(message))["type"] == kind:
            assert isinstance(document, dict)
            return document


async def closed_because(page: WebSocketClientConnection) -> str | None:
    while await page.read_message() is not None:
        pass
    return page.close_reason


def test_a_page_gets_the_events_also_when_it_is_loaded_again(
    watch: Callable[[Scenario], None],
) -> None:
    async def scenario(vm: InMemoryVm, guest: LiveGuest, server: ScopeServer) -> None:
        page = await open_socket(server)
        vm.tracer.event("echo.tick", value=1)
        first = await next_chunk(page)
        assert [event.fields["value"] for event in events_in(first)] == [1]
        page.close()
        again = await open_socket(server)
        assert await next_chunk(again) == first

    watch(scenario)


def test_the_description_has_ram_and_queues(watch: Callable[[Scenario], None]) -> None:
    async def scenario(vm: InMemoryVm, guest: LiveGuest, server: ScopeServer) -> None:
        document = (await get(server, "api/source")).json
        assert document["live"]
        assert document["memory"] == vm.ram_bytes
        assert document["ram"] == [[0, vm.ram_bytes]]
        assert {"name": "rng", "queues": ["request"]} in document["devices"]

    watch(scenario)


def test_a_page_gets_the_sizes_and_state_of_the_guest(watch: Callable[[Scenario], None]) -> None:
    async def scenario(vm: InMemoryVm, guest: LiveGuest, server: ScopeServer) -> None:
        page = await open_socket(server)
        stats = await next_text(page, "stats")
        assert stats["rss-bytes"] > 0
        assert (stats["balloon-actual"], stats["status"]) == (0, "running")
        page.write_message('{"type": "pause"}')
        assert (await next_text(page, "status"))["status"] == "paused"
        page.write_message('{"type": "resume"}')
        assert (await next_text(page, "status"))["status"] == "running"

    watch(scenario)


Leave = Callable[[WebSocketClientConnection], None]


@pytest.fixture
def leave(monkeypatch: pytest.MonkeyPatch) -> Leave:
    """Return a function that closes a page, and lets it count as gone soon."""
    monkeypatch.setattr(live_guest, "STATISTICS_PERIOD_S", 0.05)

    def leave(page: WebSocketClientConnection) -> None:
        monkeypatch.setattr(live_guest, "PAGE_TIMEOUT_S", 0.1)
        page.close()

    return leave


async def stop_at_a_target(vm: InMemoryVm, page: WebSocketClientConnection) -> None:
    """Let Step stop the guest."""
    page.write_message('{"type": "step", "kinds": ["target"]}')
    await next_text(page, "armed")
    vm.tracer.event("balloon.target", pages=1)
    await next_text(page, "step")


async def until_resumed(vm: InMemoryVm) -> None:
    async with asyncio.timeout(5):
        while vm.status == "paused":
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("stopped_by", ["pause", "step"])
def test_a_guest_that_a_page_has_stopped_resumes_when_the_page_is_gone(
    watch: Callable[[Scenario], None], leave: Leave, stopped_by: str
) -> None:
    async def scenario(vm: InMemoryVm, guest: LiveGuest, server: ScopeServer) -> None:
        page = await open_socket(server)
        if stopped_by == "step":
            await stop_at_a_target(vm, page)
        else:
            page.write_message('{"type": "pause"}')
            await next_text(page, "status")
        assert vm.status == "paused"
        leave(page)
        await until_resumed(vm)

    watch(scenario)


@pytest.mark.parametrize(
    "page_does",
    [
        [],
        ['{"type": "step", "kinds": ["chain"]}'],
        ['{"type": "pause"}'],
        ['{"type": "pause"}', '{"type": "resume"}'],
        ["stop at a target", '{"type": "resume"}'],
        ["stop at a target"],
    ],
)
def test_a_guest_that_another_client_has_paused_stays_paused_when_the_page_is_gone(
    watch: Callable[[Scenario], None], leave: Leave, tmp_path: Path, page_does: list[str]
) -> None:
    async def scenario(vm: InMemoryVm, guest: LiveGuest, server: ScopeServer) -> None:
        page = await open_socket(server)
        for message in page_does:
            if message == "stop at a target":
                await stop_at_a_target(vm, page)
            else:
                page.write_message(message)
                await next_text(page, "armed" if "step" in message else "status")
        other = await QmpLink.connect(tmp_path / "qmp")
        await other.execute("stop")
        assert vm.status == "paused"
        leave(page)
        await asyncio.sleep(0.6)
        assert vm.status == "paused"
        assert vm.hardware.caught, "Step is disarmed"
        await other.close()

    watch(scenario)


def test_a_pause_of_a_page_leaves_a_guest_paused_that_was_so_before(
    watch: Callable[[Scenario], None], leave: Leave, tmp_path: Path
) -> None:
    async def scenario(vm: InMemoryVm, guest: LiveGuest, server: ScopeServer) -> None:
        page = await open_socket(server)
        other = await QmpLink.connect(tmp_path / "qmp")
        await other.execute("stop")
        page.write_message('{"type": "pause"}')
        await next_text(page, "stats")
        leave(page)
        await asyncio.sleep(0.4)
        assert vm.status == "paused"
        await other.close()

    watch(scenario)


@pytest.mark.parametrize("stopped_by", ["pause", "step"])
def test_a_guest_that_a_page_has_stopped_resumes_when_the_scope_ends(
    serve: Serve, stopped_by: str
) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        guest = LiveGuest(path, "vm")
        await guest.start()
        if stopped_by == "step":
            await guest.step({"kinds": ["target"]})
            vm.tracer.event("balloon.target", pages=1)
            async with asyncio.timeout(5):
                while vm.status == "running":
                    await asyncio.sleep(0.01)
        else:
            await guest.pause()
        assert vm.status == "paused"
        await guest.close()
        await until_resumed(vm)

    serve(scenario)


@pytest.mark.parametrize(
    ("chosen", "why"),
    [
        ({"kinds": ["chian"]}, "No event has the kind 'chian'"),
        ({"kinds": ["chain"], "device": "ballon"}, "Device 'ballon' not found"),
        ({"kinds": ["chain"], "device": "rng", "queue": "x"}, "Device 'rng' has no queue 'x'"),
        ({"kinds": []}, "Parameter 'kinds' is missing"),
        ({"kinds": "chain"}, "Invalid parameter type for 'kinds', expected: array"),
    ],
)
def test_step_at_an_event_that_cannot_be_is_refused(
    watch: Callable[[Scenario], None], chosen: dict[str, Any], why: str
) -> None:
    async def scenario(vm: InMemoryVm, guest: LiveGuest, server: ScopeServer) -> None:
        page = await open_socket(server)
        page.write_message(json.dumps({"type": "step", **chosen}))
        assert (await next_text(page, "status"))["error"] == why

    watch(scenario)


def test_a_page_that_is_loaded_again_gets_the_event_at_which_the_guest_has_stopped(
    watch: Callable[[Scenario], None],
) -> None:
    async def scenario(vm: InMemoryVm, guest: LiveGuest, server: ScopeServer) -> None:
        page = await open_socket(server)
        guest._take_event({"event": "X_TRACE_STEP", "data": {"seq": 7, "kind": "chain"}})
        assert (await next_text(page, "step"))["seq"] == 7
        again = await open_socket(server)
        assert (await next_text(again, "step"))["seq"] == 7
        guest._take_event({"event": "RESUME"})
        assert guest.stop_event is None

    watch(scenario)


def test_a_second_scope_is_refused(watch: Callable[[Scenario], None], tmp_path: Path) -> None:
    async def scenario(vm: InMemoryVm, guest: LiveGuest, server: ScopeServer) -> None:
        with pytest.raises(GuestNotWatched, match="the events are already watched"):
            await LiveGuest(tmp_path / "qmp", "vm").start()

    watch(scenario)


def test_a_guest_without_events_is_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        monkeypatch.setattr(recording_format, "VERSION", 2)
        with pytest.raises(EventsUnsupported, match="have format 2, this pyvmm reads 1"):
            await LiveGuest(path, "vm").start()

    serve(scenario)


def test_a_socket_of_another_server_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b'{"hello": 1}')

        server = await asyncio.start_unix_server(other, tmp_path / "other")
        with pytest.raises(NotQmpSocket):
            await LiveGuest(tmp_path / "other", "vm").start()
        server.close()

    asyncio.run(main())


def test_the_events_of_a_guest_that_has_ended_remain(watch: Callable[[Scenario], None]) -> None:
    async def scenario(vm: InMemoryVm, guest: LiveGuest, server: ScopeServer) -> None:
        vm.tracer.event("echo.tick", value=1)
        page = await open_socket(server)
        await next_chunk(page)
        await guest._watch.close()
        assert await closed_because(page) == "the guest has ended"
        again = await open_socket(server)
        assert events_in(await next_chunk(again))[0].kind == "tick"
        assert (await get(server, "api/source")).status == 200

    watch(scenario)


@pytest.mark.parametrize("origin", [None, "http://evil.example", "null"])
def test_a_page_of_another_site_opens_no_socket(
    watch: Callable[[Scenario], None], origin: str | None
) -> None:
    async def scenario(vm: InMemoryVm, guest: LiveGuest, server: ScopeServer) -> None:
        with pytest.raises(HTTPClientError, match="403"):
            await open_socket(server, origin=origin)

    watch(scenario)


@pytest.mark.parametrize(
    "message", ["x" * (MAX_MESSAGE_BYTES + 1), "[", "[" * 4000, "1", "{}", '{"type": "other"}']
)
def test_a_message_that_is_not_of_the_page_closes_its_socket(
    watch: Callable[[Scenario], None], message: str
) -> None:
    async def scenario(vm: InMemoryVm, guest: LiveGuest, server: ScopeServer) -> None:
        page = await open_socket(server)
        page.write_message(message)
        await closed_because(page)
        assert (await get(server, "api/source")).status == 200

    watch(scenario)


def test_a_flood_of_messages_closes_the_socket(watch: Callable[[Scenario], None]) -> None:
    async def scenario(vm: InMemoryVm, guest: LiveGuest, server: ScopeServer) -> None:
        page = await open_socket(server)
        for _ in range(MAX_MESSAGES_PER_S + 2):
            page.write_message('{"type": "alive"}')
        assert await closed_because(page) == "too many messages"

    watch(scenario)


def test_a_page_that_falls_behind_is_disconnected() -> None:
    async def main() -> None:
        kept = history.ChunkHistory(max_bytes=10)
        for _ in range(5):
            await kept.add(b"four")
        assert kept.first == 3
        assert await kept.get(4) == b"four"
        with pytest.raises(history.TooSlow):
            await kept.get(2)

    asyncio.run(main())


def test_a_recording_has_no_state_of_a_live_guest(recorded: Path) -> None:
    async def main() -> None:
        from pyvmm.scope.recorded_guest import RecordedGuest

        server = ScopeServer(RecordedGuest(recorded))
        for path in ("api/queue?device=a&queue=b", "api/registers?device=a", "api/live"):
            answer = await get(server, path)
            assert answer.status == 409
            assert "recording" in answer.json["error"].lower()
        await server.close()

    asyncio.run(main())


def test_heads_in_flight_are_taken_and_not_returned() -> None:
    assert heads_in_flight([5, 6, 7, 0], [5, 0, 0, 0], next_avail=3, used_idx=1) == [6, 7]
    assert heads_in_flight([1, 1, 1, 1], [1, 1, 1, 1], next_avail=9, used_idx=9) == []
    assert heads_in_flight([1, 2, 1, 1], [1, 1, 1, 1], next_avail=8, used_idx=7) == [2]
    assert heads_in_flight([0] * 4, [0] * 4, next_avail=9, used_idx=2) == []
