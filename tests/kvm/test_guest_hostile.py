# SPDX-License-Identifier: Apache-2.0
"""A guest whose first process means harm to the balloon (hostile_init.c), and what is left of it.

While it works, people go on asking pyvmm over QMP; afterwards the guest's ordinary driver binds to
the device again and inflates, nothing was lost that the guest did not give, and pyvmm is not larger
than its guest.
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
from pyvmm.balloon.statistics import StatisticsUnavailable
from pyvmm.harness.guest_session import GuestSession
from pyvmm.machine.exit_result import ExitReason
from pyvmm.memory.rss import resident_bytes
from pyvmm.qmp.server import ControlServer
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from tests.kvm.guests import RunGuest
from tests.kvm.hostile_initrd import hostile_initrd

pytestmark = pytest.mark.kvm

MEMORY_MIB = 128


async def bother(guest: GuestSession, client: QMPClient, done: asyncio.Event) -> int:
    """Ask this and that of the balloon until `done`; returns how often."""
    asked = 0
    while not done.is_set():
        answer: Any = await client.execute("query-status")
        assert answer["status"] == "running"
        answer = await client.execute("query-balloon")
        assert 0 <= answer["actual"] <= MEMORY_MIB * MIB
        await client.execute("balloon", {"value": (100 + asked % 20) * MIB})
        with contextlib.suppress(StatisticsUnavailable):
            await guest.machine.balloon_statistics.fresh(0.05)
        with contextlib.suppress(GuestRequestError):
            await guest.machine.misc_requests.unused_pages(0.05)
        with contextlib.suppress(GuestRequestError):
            async with guest.machine.free_page_hints.held(0.05):
                pass
        asked += 1
    return asked


@pytest.mark.parametrize(
    ("dialect", "seed", "offer"),
    [
        ("standard", 1, ("free-page-hint", "reporting", "page-poison", "deflate-on-oom")),
        ("bitmap", 2, ("misc-vq", "deflate-on-oom")),
    ],
    ids=["standard", "bitmap"],
)
def test_a_hostile_first_process(
    run_guest: RunGuest,
    path: Path,
    figure: Callable[[str], None],
    dialect: str,
    seed: int,
    offer: tuple[str, ...],
) -> None:
    async def scenario(guest: GuestSession) -> None:
        server = ControlServer(guest.machine, path)
        await server.start()
        client = QMPClient("test")
        await client.connect(str(path))
        try:
            await guest.expect("hostile: begins")
            rss_before = resident_bytes()
            ended = asyncio.Event()
            people = asyncio.create_task(bother(guest, client, ended))
            done = await guest.expect(r"hostile: done ([^\r\n]*)\r?\n")
            ended.set()
            assert await people > 3
        finally:
            await client.disconnect()
            await server.close()
        words = done.split()
        report = dict(zip(words[::2], map(int, words[1::2]), strict=True))
        assert report["changed"] == 0, "memory that the guest never named"
        assert report["accesses"] >= 1500
        assert min(report["requests"], report["resets"]) > 5
        assert resident_bytes() - rss_before < MEMORY_MIB * MIB
        balloon = guest.machine.balloon
        assert balloon.counters.inflate.bad_payloads > 0
        await an_honest_driver_follows(guest)
        figure(f"hostile first process, {dialect}: {done}")

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


async def an_honest_driver_follows(guest: GuestSession) -> None:
    await guest.wait_for_user_space()
    machine = guest.machine
    await guest.resize_balloon(0)  # from what people asked for meanwhile
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
    assert (await guest.wait_for_exit()).ending is ExitReason.POWEROFF
