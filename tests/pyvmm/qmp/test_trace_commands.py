# SPDX-License-Identifier: Apache-2.0
"""Clients that watch events, and read memory, over a real socket."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from pyvmm.trace import watch
from pyvmm.trace.logging import LogTracer
from pyvmm.trace.recording_format import decode_chunk, decode_chunk_header
from pyvmm.trace.stream import TraceEvent, events_of
from pyvmm.trace.watch import EventWatch
from pyvmm.units import MIB
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm
from tests.pyvmm.qmp.qmp_scenarios import Serve, Streams, negotiate, receive


async def ask(streams: Streams, command: str, **arguments: Any) -> dict[str, Any]:
    """Return the reply to a command."""
    reader, writer = streams
    writer.write(json.dumps({"execute": command, "arguments": arguments}).encode())
    while "event" in (reply := await receive(reader)):
        pass
    return reply


async def value(streams: Streams, command: str, **arguments: Any) -> dict[str, Any]:
    reply = await ask(streams, command, **arguments)
    assert "return" in reply, reply
    found: dict[str, Any] = reply["return"]
    return found


async def refusal(streams: Streams, command: str, **arguments: Any) -> str:
    reply = await ask(streams, command, **arguments)
    assert reply["error"]["class"] == "GenericError"
    return str(reply["error"]["desc"])


def events_in(read: dict[str, Any]) -> list[TraceEvent]:
    """Return the events of a reply of x-trace-read."""
    data = base64.b64decode(read["chunk"])
    header = decode_chunk_header(data)
    assert header is not None
    events = [*events_of(decode_chunk(header, data))]
    assert len(events) == read["events"]
    return events


def test_a_client_reads_the_events_in_order(serve: Serve) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        client = await negotiate(path)
        vm.tracer.event("echo.early", value=0)
        assert await value(client, "x-trace-start") == {"format": 1}
        assert await value(client, "x-trace-read", timeout=0) == {
            "chunk": None,
            "events": 0,
            "dropped": 0,
        }
        values: list[object] = []
        for number in range(3):
            vm.tracer.event("echo.tick", value=number)
            read = await value(client, "x-trace-read", timeout=10)
            values += [event.fields["value"] for event in events_in(read)]
        assert values == [0, 1, 2]
        assert await value(client, "x-trace-stop") == {}
        assert "not watched" in await refusal(client, "x-trace-read")
        assert "not watched" in await refusal(client, "x-trace-stop")
        client[1].close()

    serve(scenario)


def test_a_read_waits_for_an_event_or_its_timeout(serve: Serve) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        client = await negotiate(path)
        loop = asyncio.get_running_loop()
        await value(client, "x-trace-start")
        begin = loop.time()
        assert (await value(client, "x-trace-read", timeout=0.2))["chunk"] is None
        assert 0.2 <= loop.time() - begin < 5
        loop.call_later(0.1, lambda: vm.tracer.event("echo.tick", value=1))
        read = await value(client, "x-trace-read", timeout=10)
        assert [event.kind for event in events_in(read)] == ["tick"]
        assert loop.time() - begin < 5
        client[1].close()

    serve(scenario)


def test_only_one_client_watches_until_it_stops_or_disconnects(serve: Serve) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        first, second = await negotiate(path), await negotiate(path)
        await value(first, "x-trace-start")
        already = "The events are already watched"
        assert await refusal(first, "x-trace-start") == already
        assert await refusal(second, "x-trace-start") == already
        assert "not watched by this client" in await refusal(second, "x-trace-read")
        assert "not watched by this client" in await refusal(second, "x-trace-stop")
        first[1].write(b'{"execute": "x-trace-read", "arguments": {"timeout": 10}}')
        await asyncio.sleep(0.05)
        first[1].close()  # while it waits
        while await ask(second, "x-trace-start") != {"return": {"format": 1}}:
            await asyncio.sleep(0.01)
        second[1].close()
        while vm.tracer.watched:
            await asyncio.sleep(0.01)

    serve(scenario)


def test_a_slow_client_loses_events_and_is_told_how_many(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "MAX_WAITING_BYTES", 64 * 1024)

    async def scenario(vm: InMemoryVm, path: Path) -> None:
        client = await negotiate(path)
        await value(client, "x-trace-start")
        count = 2000
        for number in range(count):  # text that cannot be compressed
            vm.tracer.event("echo.tick", value=number, text=os.urandom(60).hex())
            if number % 100 == 0:
                await asyncio.sleep(0.06)
        await asyncio.sleep(0.2)
        reads = [await value(client, "x-trace-read", timeout=0)]
        while reads[-1]["chunk"] is not None:
            reads.append(await value(client, "x-trace-read", timeout=0))
        found = sum(read["events"] for read in reads)
        dropped = sum(read["dropped"] for read in reads)
        assert 0 < found < count
        assert found + dropped == count
        vm.tracer.event("echo.tick", value=count, text="")
        last = events_in(await value(client, "x-trace-read", timeout=10))
        assert last[-1].seq == count  # the gap shows in the numbers, too
        client[1].close()

    serve(scenario)


def test_the_events_of_a_machine_without_a_buffer_cannot_be_watched(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        monkeypatch.setitem(vm.__dict__, "event_watch", EventWatch(LogTracer()))
        client = await negotiate(path)
        assert "cannot be watched" in await refusal(client, "x-trace-start")
        client[1].close()

    serve(scenario)


def test_without_a_client_that_watches_there_is_no_thread(serve: Serve) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        client = await negotiate(path)
        await value(client, "query-status")
        assert "taker" not in vm.tracer.__dict__
        await value(client, "x-trace-start")
        assert any(thread.name == "event-taker" for thread in threading.enumerate())
        client[1].close()

    serve(scenario)


# --- Memory ---------------------------------------------------------------------------------
def test_memory_is_read_as_it_is(serve: Serve) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        client = await negotiate(path)
        vm.ram.memory.write(0x12345, b"contents")
        read = await value(client, "x-read-memory", gpa=0x12344, size=10)
        assert base64.b64decode(read["data"]) == b"\0contents\0"
        large = os.urandom(MIB)
        vm.ram.memory.write(2 * MIB, large)
        read = await value(client, "x-read-memory", gpa=2 * MIB, size=MIB)
        assert base64.b64decode(read["data"]) == large
        client[1].close()

    serve(scenario)


@pytest.mark.parametrize(
    ("gpa", "size", "why"),
    [
        (1 << 30, 1, "not all in the guest's RAM"),
        ((1 << 30) - 8, 16, "not all in the guest's RAM"),
        ((1 << 64) - 1, 16, "not all in the guest's RAM"),
        (1 << 64, 16, "'gpa' expects"),
        (-1, 16, "'gpa' expects"),
        (0, 0, "'size' expects"),
        (0, MIB + 1, "'size' expects"),
    ],
)
def test_memory_outside_ram_is_refused(serve: Serve, gpa: int, size: int, why: str) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        client = await negotiate(path)
        assert why in await refusal(client, "x-read-memory", gpa=gpa, size=size)
        client[1].close()

    serve(scenario)


def test_an_event_does_not_disconnect_a_client_that_receives_a_large_reply(serve: Serve) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        reader, writer = await negotiate(path)
        transport = writer.transport
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()
        request = {"execute": "x-read-memory", "arguments": {"gpa": 0, "size": MIB}}
        writer.write(json.dumps(request).encode())
        await asyncio.sleep(0.1)
        vm.announce("BALLOON_CHANGE", actual=1)
        await asyncio.sleep(0.1)
        transport.resume_reading()
        assert len((await receive(reader))["return"]["data"]) > MIB
        assert (await receive(reader))["event"] == "BALLOON_CHANGE"
        writer.close()

    serve(scenario)
