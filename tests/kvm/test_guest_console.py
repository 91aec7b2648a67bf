# SPDX-License-Identifier: Apache-2.0
"""Ports of the console device in a real guest: Linux's virtio_console driver."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pyvmm.console.socket_host import PortServer
from pyvmm.harness.guest_session import GuestSession, guest_session
from pyvmm.machine.catalogue import part_kinds
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.sockets.unix import UnixListener
from pyvmm.units import MIB
from tests.kvm.fixture_types import RunGuest

pytestmark = pytest.mark.kvm

BYTES = 10_000_000


@asynccontextmanager
async def client(
    guest: GuestSession, path: Path, name: str = "data"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Serve a port of the guest at `path`, and connect to it."""
    listener = UnixListener(path)
    server = PortServer(guest.vm.ports[name], listener)
    try:
        reader, writer = await asyncio.open_unix_connection(str(path))
        yield reader, writer
        writer.close()
    finally:
        server.close()
        listener.remove()


async def device(guest: GuestSession, name: str = "data") -> str:
    """Return the device of a port, when the guest knows its name."""
    found = f"grep -lx {name} /sys/class/virtio-ports/*/name"
    path = await guest.shell(f"until {found}; do usleep 10000; done | head -n 1")
    return f"/dev/{path.split('/')[4]}"


def test_binary_data_passes_both_ways_unchanged(run_guest: RunGuest, path: Path) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        port = await device(guest)
        data = os.urandom(BYTES)
        async with client(guest, path) as (reader, writer):
            await guest.shell(f"cat <>{port} >&0 2>/dev/null &")
            writer.write(data)
            echo = await asyncio.wait_for(reader.readexactly(BYTES), 300)
        assert echo == data

    run_guest(scenario, ports=["data"])


def test_a_slow_reader_outside_stops_the_writer_inside(run_guest: RunGuest, path: Path) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        port = await device(guest)
        model = guest.vm.machine.model("console").ports["data"]  # type: ignore[attr-defined]
        async with client(guest, path) as (reader, _):
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            await guest.shell(f"dd if=/dev/urandom of=/sent bs=32k count={20 * 32} 2>/dev/null")
            await guest.shell(f"(dd if=/sent of={port} bs=32k; touch /done) >/dev/null 2>&1 &")
            before = -1
            while model.output_bytes != before:
                before = model.output_bytes
                await asyncio.sleep(2)
            assert before < 2 * MIB, "what the socket holds"
            assert await guest.shell("[ -e /done ] || echo waiting") == "waiting\n"
            reader._transport.resume_reading()  # type: ignore[attr-defined]
            received = await asyncio.wait_for(reader.readexactly(20 * MIB), 300)
            checksum = await guest.shell("until [ -e /done ]; do usleep 10000; done; md5sum </sent")
            assert checksum.split()[0] == hashlib.md5(received).hexdigest()

    run_guest(scenario, ports=["data"], memory_mib=512)


def test_a_port_is_plugged_in_used_and_unplugged(run_guest: RunGuest, path: Path) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        assert await guest.shell("ls /sys/class/virtio-ports") == ""
        guest.vm.ports.add("hot")
        port = await device(guest, "hot")
        async with client(guest, path, "hot") as (reader, writer):
            await guest.shell(f"cat <>{port} >&0 2>/dev/null &")
            writer.write(b"echo this\n")
            assert await reader.readline() == b"echo this\n"
            guest.vm.ports.remove("hot")
            gone = f"while [ -e {port} ]; do usleep 10000; done; ls /sys/class/virtio-ports"
            assert await guest.shell(gone) == ""

    run_guest(scenario, hotplug_ports=1)


def test_opening_and_closing_is_seen_on_the_other_side(run_guest: RunGuest, path: Path) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        port = await device(guest)
        model = guest.vm.machine.model("console").ports["data"]  # type: ignore[attr-defined]
        async with client(guest, path) as (_, writer):
            await guest.shell(f"(cat {port} >/input; touch /ended) >/dev/null 2>&1 &")
            while not model.guest_open:
                await asyncio.sleep(0.01)
            writer.write(b"the whole input")
            while model.input_bytes < len(b"the whole input"):
                await asyncio.sleep(0.01)
        ended = "until [ -e /ended ]; do usleep 10000; done; cat /input"
        assert await guest.shell(ended) == "the whole input"
        while model.guest_open:
            await asyncio.sleep(0.01)

    run_guest(scenario, ports=["data"])


def test_the_guest_sees_the_window_size_and_its_changes(run_guest: RunGuest) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        console = guest.vm.ports["console"]
        for columns, rows in ((132, 43), (80, 25)):
            console.resize(columns, rows)
            size = f"{rows} {columns}"
            found = f"stty size </dev/hvc0 2>&1 | grep -x '{size}'"
            assert await guest.shell(f"until {found}; do usleep 10000; done") == f"{size}\n"

    run_guest(scenario, console="virtio", append="console=ttyS0")


def test_output_in_flight_survives_a_snapshot(run_guest: RunGuest, path: Path, file: Path) -> None:
    expected = b"".join(b"%d\n" % number for number in range(1, 200_001))
    parts: list[bytes] = []

    async def save(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        port = await device(guest)
        async with client(guest, path) as (reader, _):
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            await guest.shell(f"seq 1 200000 >{port} 2>/dev/null &")
            await asyncio.sleep(3)
            await guest.save_snapshot(file, keep_running=False)
            reader._transport.resume_reading()  # type: ignore[attr-defined]
            before = await asyncio.wait_for(reader.read(1 << 16), 10)
            while True:  # what the socket holds
                try:
                    before += await asyncio.wait_for(reader.read(1 << 16), 1)
                except TimeoutError:
                    break
            parts.append(before)

    async def restored() -> None:
        with SnapshotFile(file, part_kinds()) as snapshot:
            assert snapshot.config.ports == ("data",)
            rest = len(expected) - len(parts[0])
            async with (
                guest_session(snapshot.config, snapshot) as guest,
                client(guest, path) as (reader, _),
            ):
                parts.append(await asyncio.wait_for(reader.readexactly(rest), 120))

    run_guest(save, ports=["data"])
    asyncio.run(restored())
    assert 0 < len(parts[0]) < len(expected)
    assert b"".join(parts) == expected
