# SPDX-License-Identifier: Apache-2.0
"""Migrate a real guest between machines, repeatedly and through broken connections."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from pyvmm.harness.guest_session import GuestSession, incoming_session
from pyvmm.machine.catalogue import part_kinds
from pyvmm.machine.run_state import RunState
from pyvmm.migration.destination import DestinationMigration
from pyvmm.migration.errors import MigrationError
from pyvmm.migration.link import MigrationLink
from pyvmm.migration.outgoing import Migrations
from pyvmm.migration.prepared_vm import prepare_vm
from pyvmm.migration.timeouts import Timeouts
from pyvmm.qmp import commands
from pyvmm.qmp.messages import QmpError, Request
from pyvmm.sockets.addresses import parse_migration_address
from pyvmm.sockets.link import SocketLink
from pyvmm.sockets.listener import MigrationListener
from pyvmm.sockets.tls import Security
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from tests.kvm.balloon_driver import power_off
from tests.kvm.fixture_types import RunGuest
from tests.pyvmm.migration.migration_guest import FakeTarget
from tests.pyvmm.migration.stalled_peers import StalledDestination

pytestmark = pytest.mark.kvm

PATTERN_MIB = 32
VERIFIED = f"verified {PATTERN_MIB * MIB} wrong 0"
BALLOON_PAGES = 96 * MIB // PAGE_BYTES
MIGRATIONS = 2
DISCONNECTS = 10
UPTIME = "cut -d' ' -f1 /proc/uptime"
# `grab` allocates without checking MemFree, which is low while free page hints are in flight.
WRITE_CONTINUOUSLY = (
    "(while pattern grab 8 fill 3 verify 3 fill 4 verify 4 free; do echo good; done; echo bad)"
    " > /log 2>&1 &"
)


def ask(guest: GuestSession, command: str, **arguments: Any) -> Any:
    return commands.execute(guest.vm, Request(command, arguments))


async def migration_result(guest: GuestSession) -> dict[str, Any]:
    """Wait for the end of a migration; return the reply of query-migrate."""
    while guest.vm.migrations.active:
        await asyncio.sleep(0.01)
    answer: dict[str, Any] = ask(guest, "query-migrate")
    return answer


@asynccontextmanager
async def migrated_guest(
    guest: GuestSession, address: str, **options: Any
) -> AsyncIterator[tuple[GuestSession, dict[str, Any]]]:
    """Migrate the guest; yield its session at the destination, and the reply of query-migrate."""
    listener = MigrationListener(parse_migration_address(address), Security())
    # The lab copies too slowly for a guest that writes continuously to converge to less.
    ask(guest, "migrate-set-parameters", **{"downtime-limit": 5000})
    ask(guest, "migrate", uri=address, **options)
    with closing(prepare_vm()) as prepared:
        async with incoming_session(listener, prepared=prepared) as there:
            answer = await migration_result(guest)
            assert answer["status"] == "completed", answer
            yield there, answer


@pytest.mark.parametrize(
    ("dialect", "vcpus", "unused"),
    [
        *product(["bitmap", "standard"], [1, 4], [True, False]),
        ("ranges", 1, True),
        pytest.param("hybrid", 1, True, marks=pytest.mark.long),
    ],
)
def test_a_guest_migrates_repeatedly(
    run_guest: RunGuest,
    address: str,
    figure: Callable[[str], None],
    dialect: str,
    vcpus: int,
    unused: bool,
) -> None:
    """The guest writes memory continuously, and its balloon is between two sizes."""

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        for command in ("alloc 80", "fill 1", "free", f"alloc {PATTERN_MIB}", "fill 7"):
            await guest.command(command)
        await guest.resize_balloon(BALLOON_PAGES)
        await guest.shell(WRITE_CONTINUOUSLY)
        first, before = guest, float(await guest.shell(UPTIME))
        async with AsyncExitStack() as stack:
            for number in range(MIGRATIONS):
                target = BALLOON_PAGES + 2000 * (number + 1)
                guest.vm.set_balloon_target(guest.vm.ram_bytes - target * PAGE_BYTES)
                to = f"{address}{number}"
                there, answer = await stack.enter_async_context(
                    migrated_guest(guest, to, unused=unused)
                )
                assert ask(guest, "query-status")["status"] == "postmigrate"
                with pytest.raises(QmpError, match="has migrated"):
                    ask(guest, "cont")
                assert await there.command("verify 7") == VERIFIED
                now = float(await there.shell(UPTIME))
                assert before <= now < before + 120
                before, guest = now, there
                await guest.resize_balloon(target)
                figure(
                    f"migration {dialect:8} {vcpus} vCPUs: {answer['total-time']} ms, down"
                    f" {answer['downtime']} ms, {answer['ram']['transferred'] // MIB} MiB,"
                    f" {answer['ram']['dirty-sync-count']} rounds, {answer['unused-pages']}"
                )
                if (
                    dialect != "standard" or not unused
                ):  # hints cover large free blocks only, if there are any
                    assert bool(answer["unused-pages"]["skipped"]) == unused
            assert guest is not first
            log = await guest.shell("cat /log")
            assert "bad" not in log
            assert "good" in log
            await guest.resize_balloon(0)
            assert await guest.command("verify 7") == VERIFIED
            assert int(await guest.shell("grep -c ^processor /proc/cpuinfo")) == vcpus
            await power_off(guest)

    offer = ["free-page-hint"] if dialect == "standard" else []
    run_guest(scenario, memory_mib=256, dialect=dialect, vcpus=vcpus, offer=offer)


class BreakingLink(SocketLink):
    """A connection that breaks when `left` bytes have been received."""

    left = 0
    plain_fd = None
    """The bytes of pages are received here, too."""

    def receive(self, at_most: int) -> bytes:
        data = super().receive(at_most)
        self._count(len(data))
        return data

    def receive_into(self, buffer: memoryview) -> int:
        size = super().receive_into(buffer)
        self._count(size)
        return size

    def _count(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            self.abort()


def test_the_guest_survives_every_disconnect(
    run_guest: RunGuest, address: str, figure: Callable[[str], None]
) -> None:
    """The connection breaks at a random byte; the guest keeps running and can migrate later."""

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        for command in (f"alloc {PATTERN_MIB}", "fill 7"):
            await guest.command(command)
        choose = random.Random(5)
        for _ in range(DISCONNECTS):
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(address.removeprefix("unix:"))
                server.listen()
                ask(guest, "migrate", uri=address)
                stream, _ = await asyncio.to_thread(server.accept)
            Path(address.removeprefix("unix:")).unlink()
            link = BreakingLink(stream)
            link.left = choose.randrange(PATTERN_MIB * MIB)
            target = FakeTarget()
            target.kinds = part_kinds()
            with pytest.raises(MigrationError):
                await asyncio.to_thread(DestinationMigration(target, MigrationLink(link)).run)
            link.close()
            answer = await migration_result(guest)
            assert answer["status"] == "failed"
            assert answer["error-desc"]
            assert target.runs is None
            assert guest.vm.status == "running"
        assert await guest.command("verify 7") == VERIFIED
        async with migrated_guest(guest, address) as (there, _):
            assert await there.command("verify 7") == VERIFIED
            await power_off(there)

    run_guest(scenario, memory_mib=128)


@pytest.mark.parametrize(("step", "status"), [("restored", "running"), ("running", "paused")])
def test_a_dribbling_destination_does_not_keep_the_guest_paused_without_limit(
    run_guest: RunGuest, address: str, figure: Callable[[str], None], step: str, status: RunState
) -> None:
    """Before the commit the guest resumes; after it, it is paused, complete and can be resumed."""

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        for command in (f"alloc {PATTERN_MIB}", "fill 7"):
            await guest.command(command)
        guest.vm._migrations = Migrations(guest.vm, Timeouts(switchover=3, commit=3))
        ask(guest, "migrate-set-parameters", **{"downtime-limit": 2000})
        path = Path(address.removeprefix("unix:"))
        peer = StalledDestination(path, step, "dribbling", 0.5, part_kinds())
        ask(guest, "migrate", uri=address)
        answer = await migration_result(guest)
        await asyncio.to_thread(peer.stop)
        path.unlink()
        figure(
            f"dribbling destination, {step}: {answer['error-desc']}; down {answer['downtime']} ms"
        )
        assert answer["status"] == "failed"
        assert guest.vm.status == status
        if status == "running":
            assert "the switchover has taken more than 5 s" in answer["error-desc"]
        else:
            assert "it is paused here and complete" in answer["error-desc"]
            ask(guest, "cont")
        assert await guest.command("verify 7") == VERIFIED
        async with migrated_guest(guest, address) as (there, _):
            assert await there.command("verify 7") == VERIFIED
            await power_off(there)

    run_guest(scenario, memory_mib=128)
