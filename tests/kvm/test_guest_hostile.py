# SPDX-License-Identifier: Apache-2.0
"""A guest whose init process attacks the balloon device (hostile_init.c).

QMP clients are served meanwhile. Afterwards the guest's ordinary driver binds to the device and
inflates, no page was discarded that the guest did not name, and pyvmm has not grown by more than
the size of its guest.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import QMPClient

from pyvmm.balloon.guest_requests import GuestRequestError
from pyvmm.harness.guest_session import GuestSession
from pyvmm.machine.exit_result import ExitReason
from pyvmm.memory.rss import resident_bytes
from pyvmm.qmp.server import ControlServer
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from tests.kvm.fixture_types import RunGuest
from tests.kvm.hostile_initrd import hostile_initrd

pytestmark = pytest.mark.kvm

MEMORY_MIB = 128


async def query_until(guest: GuestSession, client: QMPClient, done: asyncio.Event) -> int:
    """Send QMP commands and guest requests until `done`; return the number of rounds."""
    rounds = 0
    while not done.is_set():
        answer: Any = await client.execute("query-status")
        assert answer["status"] == "running"
        answer = await client.execute("query-balloon")
        assert 0 <= answer["actual"] <= MEMORY_MIB * MIB
        await client.execute("balloon", {"value": (100 + rounds % 20) * MIB})
        with contextlib.suppress(GuestRequestError):
            await guest.vm.balloon_statistics.fresh(0.05)
        with contextlib.suppress(GuestRequestError):
            await guest.vm.misc_requests.unused_pages(0.05)
        with contextlib.suppress(GuestRequestError):
            async with guest.vm.free_page_hints.held(0.05):
                pass
        rounds += 1
    return rounds


@pytest.mark.parametrize(
    ("dialect", "seed", "offer"),
    [
        ("standard", 1, ("free-page-hint", "reporting", "page-poison", "deflate-on-oom")),
        ("bitmap", 2, ("misc-vq", "deflate-on-oom")),
    ],
    ids=["standard", "bitmap"],
)
def test_a_hostile_init_process_harms_neither_pyvmm_nor_its_guest(
    run_guest: RunGuest,
    path: Path,
    figure: Callable[[str], None],
    dialect: str,
    seed: int,
    offer: tuple[str, ...],
) -> None:
    async def scenario(guest: GuestSession) -> None:
        server = ControlServer(guest.vm, path)
        await server.start()
        client = QMPClient("test")
        await client.connect(str(path))
        try:
            await guest.expect("hostile: begins")
            rss_before = resident_bytes()
            ended = asyncio.Event()
            clients = asyncio.create_task(query_until(guest, client, ended))
            done = await guest.expect(r"hostile: done ([^\r\n]*)\r?\n")
            ended.set()
            assert await clients > 3
        finally:
            await client.disconnect()
            await server.close()
        words = done.split()
        report = dict(zip(words[::2], map(int, words[1::2]), strict=True))
        assert report["changed"] == 0, "a page changed that the guest never named"
        assert report["accesses"] >= 1500
        assert min(report["requests"], report["resets"]) > 5
        assert resident_bytes() - rss_before < MEMORY_MIB * MIB
        balloon = guest.vm.balloon
        assert balloon.counters.inflate.bad_payloads > 0
        await check_ordinary_driver(guest)
        figure(f"hostile init process, {dialect}: {done}")

    run_guest(
        scenario,
        memory_mib=MEMORY_MIB,
        vcpus=2,
        dialect=dialect,
        offer=offer,
        initrd=hostile_initrd(),
        append=f"rdinit=/hostile hostile.seed={seed} hostile.accesses=1500 "
        f"hostile.bitmap={int(dialect == 'bitmap')}",
    )


async def check_ordinary_driver(guest: GuestSession) -> None:
    await guest.wait_for_user_space()
    machine = guest.vm
    await guest.resize_balloon(0)  # undo the sizes that `query_until` has set
    await guest.command("alloc 24")
    await guest.command("fill 7")
    before = machine.balloon.counters.inflate
    await guest.resize_balloon(48 * MIB // PAGE_BYTES)
    after = machine.balloon.counters.inflate
    assert after.pages - before.pages >= 48 * MIB // PAGE_BYTES
    assert after.bad_payloads == before.bad_payloads
    assert await guest.command("verify 7") == f"verified {24 * MIB} wrong 0"
    await guest.resize_balloon(0)
    guest.console.send_line("quit")
    assert (await guest.wait_for_exit()).reason is ExitReason.POWEROFF
