# SPDX-License-Identifier: Apache-2.0
"""Scenarios of clients on a real control socket, whose VM is in memory."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from pyvmm.qmp import commands
from pyvmm.qmp.command import Command
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Scenario = Callable[[InMemoryVm, Path], Coroutine[Any, Any, None]]
Serve = Callable[[Scenario], None]


async def connect(path: Path) -> Streams:
    reader, writer = await asyncio.open_unix_connection(path, limit=1 << 22)
    assert "QMP" in await receive(reader)
    return reader, writer


async def negotiate(path: Path) -> Streams:
    reader, writer = await connect(path)
    writer.write(b'{"execute": "qmp_capabilities"}')
    assert await receive(reader) == {"return": {}}
    return reader, writer


async def receive(reader: asyncio.StreamReader) -> dict[str, Any]:
    message = json.loads(await reader.readline())
    assert isinstance(message, dict)
    return message


def waiting_command(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.Future[int]]:
    """Add a command "wait" whose values are the futures collected in the list."""
    answers: list[asyncio.Future[int]] = []

    async def wait(vm: object) -> int:
        answers.append(asyncio.get_running_loop().create_future())
        return await answers[-1]

    monkeypatch.setitem(commands.COMMANDS, "wait", Command(wait))
    return answers
