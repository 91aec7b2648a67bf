# SPDX-License-Identifier: Apache-2.0
"""QEMU and pyvmm reply alike to the same QOM commands, errors included.

The installed QEMU runs with a balloon and no guest. Statistics that only newer versions have are
not compared, nor are its many other properties.
"""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ConnectError, ExecuteError, QMPClient

from devices.testing.balloon.stats import StatsGuest
from pyvmm.qmp.server import ControlServer
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm

QEMU = shutil.which("qemu-system-x86_64")
BALLOON = "/machine/peripheral/balloon0"
INTERVAL = {"path": BALLOON, "property": "guest-stats-polling-interval"}
NOT_INTEGERS: list[Any] = ["1", 1.5, True, [], {}, None]
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("qom-list", {"path": "/nosuch"}),
    ("qom-list", {"path": "alloon0"}),
    ("qom-list", {"path": "/balloon0"}),
    ("qom-list", {"path": 1}),
    ("qom-list", {}),
    ("qom-get", {"path": "/nosuch", "property": "type"}),
    ("qom-get", {"path": BALLOON, "property": "nosuch"}),
    ("qom-get", {"path": "balloon0", "property": "type"}),
    ("qom-get", {"path": "peripheral/balloon0", "property": "type"}),
    ("qom-get", {"path": "//machine//peripheral/balloon0/", "property": "type"}),
    ("qom-get", {"path": "/machine/peripheral", "property": "balloon0"}),
    ("qom-get", {"path": "/machine/peripheral", "property": "type"}),
    ("qom-get", {"path": "/", "property": "type"}),
    ("qom-get", {"path": "/", "property": "machine"}),
    ("qom-get", {"path": BALLOON}),
    ("qom-get", INTERVAL),
    ("qom-set", {**INTERVAL, "value": -1}),
    ("qom-set", {**INTERVAL, "value": 2**32}),
    *(("qom-set", {**INTERVAL, "value": value}) for value in NOT_INTEGERS),
    ("qom-set", INTERVAL),
    ("qom-set", {**INTERVAL, "value": 1, "more": 1}),
    ("qom-set", {**INTERVAL, "value": 2**32 - 1}),
    ("qom-get", INTERVAL),
    ("qom-set", {**INTERVAL, "value": 0}),
    ("qom-get", INTERVAL),
]


@asynccontextmanager
async def client_of(path: Path) -> AsyncIterator[QMPClient]:
    client = QMPClient("test")
    while True:
        try:
            await client.connect(str(path))
            break
        except ConnectError:  # QEMU does not listen yet
            await asyncio.sleep(0.02)
    try:
        yield client
    finally:
        await client.disconnect()


@asynccontextmanager
async def qemu(directory: Path) -> AsyncIterator[QMPClient]:
    assert QEMU is not None
    process = await asyncio.create_subprocess_exec(
        *(QEMU, "-S", "-nodefaults", "-display", "none", "-m", "16"),
        *("-device", "virtio-balloon-pci,id=balloon0"),
        *("-qmp", f"unix:{directory}/qemu,server=on,wait=off"),
    )
    try:
        async with client_of(directory / "qemu") as client:
            yield client
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def pyvmm(directory: Path) -> AsyncIterator[QMPClient]:
    vm = InMemoryVm()
    server = ControlServer(vm, directory / "pyvmm")
    await server.start()
    try:
        async with client_of(directory / "pyvmm") as client:
            yield client
    finally:
        vm.balloon_statistics.close()
        await server.close()


async def reply(client: QMPClient, command: str, arguments: dict[str, Any]) -> Any:
    """Return the value of a command, or its error's class and description."""
    try:
        return await client.execute(command, arguments)
    except ExecuteError as error:
        return error.error_class, str(error)


@pytest.mark.skipif(QEMU is None, reason="QEMU is not installed")
def test_qom_commands_reply_as_qemu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StatsGuest, "start", lambda guest: None)  # no driver, as in QEMU

    async def main(directory: Path) -> None:
        async with qemu(directory) as theirs, pyvmm(directory) as ours:
            for command, arguments in REQUESTS:
                expected = await reply(theirs, command, arguments)
                assert await reply(ours, command, arguments) == expected, (command, arguments)

            stats = {"path": BALLOON, "property": "guest-stats"}
            expected = await reply(theirs, "qom-get", stats)
            answer = await reply(ours, "qom-get", stats)
            common = {name: answer["stats"].get(name) for name in expected["stats"]}
            assert len(common) >= 10
            assert {**answer, "stats": common} == expected

            for path in ("/machine/peripheral", BALLOON):
                listed = await reply(ours, "qom-list", {"path": path})
                in_qemu = await reply(theirs, "qom-list", {"path": path})
                assert [each for each in listed if each not in in_qemu] == []

    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        asyncio.run(asyncio.wait_for(main(Path(directory)), 60))
