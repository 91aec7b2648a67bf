# SPDX-License-Identifier: Apache-2.0
"""Cells of the table of stalled peers: each runs one side of a migration; what happens is returned.

The source is a VM without KVM; the destination creates one. `Times` scales the deadlines and the
period of a dribbling peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pyvmm.config import MachineConfig
from pyvmm.migration.errors import IncomingMigrationFailed
from pyvmm.migration.incoming import accept_migration
from pyvmm.migration.outgoing import Migrations
from pyvmm.migration.timeouts import TIMEOUTS, Timeouts
from pyvmm.qmp import commands
from pyvmm.qmp.messages import Request
from pyvmm.qmp.server import ControlServer
from pyvmm.sockets.addresses import TcpAddress
from pyvmm.sockets.connect import connect_directly
from pyvmm.sockets.listener import MigrationListener
from pyvmm.sockets.tls import Security, TlsFiles
from pyvmm.units import MIB
from tests.pyvmm.migration.incoming_vm import EndingVm
from tests.pyvmm.migration.stalled_peers import (
    RAM_MIB,
    Mode,
    StalledDestination,
    StalledHandshake,
    StalledPeer,
    StalledSource,
)
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm

HANGING = "hanging.invalid"
"""A host name, and the name of a TLS file, at which the system call hangs."""
RUNS_HERE = "failed, the guest runs at the source"
PAUSED = "failed, the guest is paused and complete at the source"
CANCELLED = "cancelled, the guest runs at the source"
MOVED = "completed, the guest runs at the destination"
STILL_WAITING = "refused, the destination waits for another source"
NOT_HERE = "the destination ends without a guest"
ENDED = "the VMM ends"
_PLACES = {
    "running": "runs at the source",
    "paused": "is paused and complete at the source",
    "postmigrate": "runs at the destination",
}


class Times(NamedTuple):
    """Deadlines, and the seconds between two bytes of a dribbling peer."""

    timeouts: Timeouts = TIMEOUTS
    dribble_s: float = 1.0


class CellResult(NamedTuple):
    """The end of a cell, and the seconds until then since the peer stalled."""

    result: str
    seconds: float
    error: str = ""


# --- The source, whose destination stalls ---------------------------------------------------------
def _source(timeouts: Timeouts) -> InMemoryVm:
    vm = InMemoryVm(RAM_MIB * MIB)
    vm.ram.memory.write(0, b"x" * (8 * MIB))  # more than sockets buffer
    vm.__dict__["migrations"] = Migrations(vm, timeouts)
    return vm


def _ask(vm: InMemoryVm, command: str, **arguments: Any) -> Any:
    return commands.execute(vm, Request(command, arguments))


async def _migrate(vm: InMemoryVm, uri: str, tls: TlsFiles | None = None) -> CellResult:
    begin = time.monotonic()
    files = {"ca": tls.ca, "cert": tls.certificate, "key": tls.key} if tls else {}
    options = {f"tls-{name}": str(path) for name, path in files.items()}
    _ask(vm, "migrate", uri=uri, unused=False, insecure=True, **options)
    while vm.migrations.active:
        await asyncio.sleep(0.005)
    answer = _ask(vm, "query-migrate")
    place = _PLACES.get(vm.status, vm.status)
    result = f"{answer['status']}, the guest {place}"
    return CellResult(result, time.monotonic() - begin, answer.get("error-desc", ""))


@contextmanager
def _stalled_destination(
    directory: Path, step: str, mode: Mode, times: Times
) -> Iterator[tuple[StalledDestination, str]]:
    peer = StalledDestination(directory / "m", step, mode, times.dribble_s)
    try:
        yield peer, f"unix:{directory / 'm'}"
    finally:
        peer.stop()


async def destination_stalls(directory: Path, times: Times, step: str, mode: Mode) -> CellResult:
    """Wait until the source has dropped a destination that stalls."""
    with _stalled_destination(directory, step, mode, times) as (_, uri):
        return await _migrate(_source(times.timeouts), uri)


async def source_is_told(directory: Path, times: Times, step: str, command: str) -> CellResult:
    """Cancel the migration, or end the VM as `quit` does, while the destination stalls."""
    vm = _source(TIMEOUTS)
    with _stalled_destination(directory, step, "silent", times) as (peer, uri):
        migrating = asyncio.create_task(_migrate(vm, uri))
        while not peer.stalled.is_set():
            await asyncio.sleep(0.005)
        return await _tell(vm, migrating, command)


async def _tell(vm: InMemoryVm, migrating: asyncio.Task[CellResult], command: str) -> CellResult:
    begin = time.monotonic()
    if command == "quit":
        await vm.migrations.end()
        seconds = time.monotonic() - begin
        return CellResult(ENDED, seconds, (await migrating).error)
    _ask(vm, command)
    return (await migrating)._replace(seconds=time.monotonic() - begin)


async def source_hangs(directory: Path, times: Times, call: str, command: str) -> CellResult:
    """Migrate with a name look-up or a file that hangs; cancel it, quit, or wait ("")."""
    vm = _source(TIMEOUTS if command else times.timeouts)
    hanging = TlsFiles(Path(HANGING), Path(HANGING), Path(HANGING))
    uri, tls = ("tcp:127.0.0.1:1", hanging) if call == "file" else (f"tcp:{HANGING}:1", None)
    migrating = asyncio.create_task(_migrate(vm, uri, tls))
    if not command:
        return await migrating
    await asyncio.sleep(0.1)
    return await _tell(vm, migrating, command)


async def server_stalls_in_tls(directory: Path, times: Times, tls: TlsFiles) -> CellResult:
    """Migrate with TLS to a server that accepts connections and is silent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        return await _migrate(_source(times.timeouts), f"tcp:127.0.0.1:{port}", tls)


# --- The destination, whose source stalls ---------------------------------------------------------
class _Waiting:
    """A destination that waits for a guest."""

    def __init__(self, times: Times, tls: TlsFiles | None) -> None:
        listener = MigrationListener(TcpAddress("127.0.0.1", 0), Security(tls))
        self.address = listener.address
        self.refused: list[str] = []
        self.created: list[EndingVm] = []
        self.task = asyncio.create_task(
            accept_migration(
                listener,
                self._make,  # type: ignore[arg-type]
                on_refused=lambda error: self.refused.append(str(error)),
                timeouts=times.timeouts,
            )
        )

    def _make(self, config: MachineConfig) -> EndingVm:
        self.created.append(EndingVm(config))
        return self.created[-1]

    def stalled_source(self, times: Times, step: str, mode: Mode, tls: Security) -> StalledPeer:
        stream = connect_directly(self.address)
        stream.settimeout(None)
        if step == "handshake":
            return StalledHandshake(stream, mode, times.dribble_s)
        if tls.tls is not None:
            assert isinstance(self.address, TcpAddress)
            context = tls.tls.context(server=False)
            stream = context.wrap_socket(stream, server_hostname=self.address.host)
        return StalledSource(stream, step, mode, times.dribble_s)


@asynccontextmanager
async def _stalled_source(
    times: Times, step: str, mode: Mode, tls: TlsFiles | None
) -> AsyncIterator[tuple[_Waiting, StalledPeer]]:
    waiting = _Waiting(times, tls)
    peer = await asyncio.to_thread(waiting.stalled_source, times, step, mode, Security(tls))
    try:
        yield waiting, peer
    finally:
        waiting.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, IncomingMigrationFailed):
            await waiting.task
        await asyncio.to_thread(peer.stop)


async def source_stalls(
    directory: Path, times: Times, step: str, mode: Mode, tls: TlsFiles | None = None
) -> CellResult:
    """Wait until the destination has dropped a source that stalls, then send it a guest."""
    async with _stalled_source(times, step, mode, tls) as (waiting, peer):
        while not peer.stalled.is_set():
            await asyncio.sleep(0.005)
        begin = time.monotonic()
        while not waiting.refused and not waiting.task.done():
            await asyncio.sleep(0.005)
        seconds = time.monotonic() - begin
        if waiting.task.done():
            assert not any(vm.has_run for vm in waiting.created)
            return CellResult(NOT_HERE, seconds, str(waiting.task.exception()))
        for _ in range(5):  # a busy machine may exceed the scaled deadlines
            moved = await _migrate(_source(TIMEOUTS), str(waiting.address), tls)
            if moved.result == MOVED:
                break
        assert moved.result == MOVED, moved
        await waiting.task
        return CellResult(STILL_WAITING, seconds, waiting.refused[0])


async def destination_ends(
    directory: Path, times: Times, step: str, tls: TlsFiles | None = None
) -> CellResult:
    """End the wait, as signals do, while the source stalls."""
    async with _stalled_source(Times(), step, "silent", tls) as (waiting, peer):
        while not peer.stalled.is_set():
            await asyncio.sleep(0.005)
        begin = time.monotonic()
        waiting.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting.task
        assert not any(vm.has_run for vm in waiting.created)
        return CellResult(ENDED, time.monotonic() - begin)


# --- Clients of the control sockets ---------------------------------------------------------------
async def control_client_stalls(directory: Path, _: Times, side: str, step: str) -> CellResult:
    """Migrate while a client of one side's control socket stalls, then close the sockets.

    The deadlines are the real ones: nothing may wait for the client, and a busy machine for others.
    """
    times = Times()
    source, waiting = _source(times.timeouts), _Waiting(times, None)
    server = ControlServer(source if side == "source" else InMemoryVm(), directory / "qmp")
    await server.start()
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        client.connect(str(directory / "qmp"))
        client.send(b'{"execute": "qmp_capabilities"}')
        if step == "half a request":
            client.send(b'{"execute": "query-')
        with contextlib.suppress(BlockingIOError):
            while step == "replies unread":
                client.send(b'{"execute": "query-version"}' * 100)
                await asyncio.sleep(0)
        begin = time.monotonic()
        outcome = await _migrate(source, str(waiting.address))
        await waiting.task
        await server.close()
        return outcome._replace(seconds=time.monotonic() - begin)
