# SPDX-License-Identifier: Apache-2.0
"""Statistics of a real guest, against what its own /proc/meminfo says."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError, QMPClient

from pyvmm.harness.guest_session import GuestSession
from pyvmm.machine.exit_result import ExitReason
from pyvmm.qmp.server import ControlServer
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from tests.kvm.guests import RunGuest

pytestmark = pytest.mark.kvm

SLACK_BYTES = 6 * MIB
"""What a guest's own bookkeeping may move its free memory by between two looks at it."""
LISTS_BYTES = 24 * MIB
"""What an allocation may find on lists of free pages that the guest does not count as free."""
NEEDS_HUGETLB = {"stat-htlb-pgalloc", "stat-htlb-pgfail"}
BALLOON = "/machine/peripheral/balloon0"
INTERVAL = "guest-stats-polling-interval"


async def fresh(guest: GuestSession) -> dict[str, int | None]:
    timed = await guest.while_running(guest.machine.balloon_statistics.fresh(60))
    assert timed.report.unknown == {}
    return timed.report.known


async def meminfo(guest: GuestSession) -> dict[str, int]:
    """Bytes by the names of the statistics, from the guest's own mouth."""
    words = (await guest.command("meminfo")).split()
    kib = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    return {
        f"stat-{name}-memory": kib[f"{name}_kib"] * 1024 for name in ("total", "free", "available")
    }


async def assert_agrees(guest: GuestSession) -> dict[str, int]:
    """Fresh statistics say what the guest's meminfo says; returns what that is."""
    stats, truth = await fresh(guest), await meminfo(guest)
    assert stats["stat-total-memory"] == truth["stat-total-memory"]
    for name in ("stat-free-memory", "stat-available-memory"):
        assert abs((stats[name] or 0) - truth[name]) < SLACK_BYTES, name
    return truth


@pytest.mark.conformance("5.5.6.3.2-2")
@pytest.mark.parametrize("dialect", ["bitmap", "standard"])
def test_statistics_are_those_of_the_guest(run_guest: RunGuest, dialect: str) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        absent = {name for name, value in (await fresh(guest)).items() if value is None}
        assert absent <= NEEDS_HUGETLB
        idle = await assert_agrees(guest)

        await guest.command("alloc 96")
        full = await assert_agrees(guest)
        used = idle["stat-free-memory"] - full["stat-free-memory"]
        assert abs(used - 96 * MIB) < LISTS_BYTES

        await guest.resize_balloon(32 * MIB // PAGE_BYTES)
        taken = await assert_agrees(guest)
        assert idle["stat-total-memory"] - taken["stat-total-memory"] == 32 * MIB

        waiting = [asyncio.create_task(fresh(guest)) for _ in range(8)]
        asked = guest.machine.balloon.stats.questions
        assert all(await asyncio.gather(*waiting))
        assert guest.machine.balloon.stats.questions <= asked + 2, "they share an answer"

        guest.console.send_line("quit")
        assert (await guest.wait_for_exit()).ending is ExitReason.POWEROFF

    run_guest(scenario, dialect=dialect)


def test_clients_of_qemu_read_them(run_guest: RunGuest, path: Path) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        server = ControlServer(guest.machine, path)
        await server.start()
        client = QMPClient("test")
        await client.connect(str(path))
        try:
            await polling_works(guest, client)
            await a_paused_guest_does_not_answer(client)
            await the_command_line_shows_them(guest, path)
        finally:
            await client.disconnect()
            await server.close()
        guest.console.send_line("quit")
        assert (await guest.wait_for_exit()).ending is ExitReason.POWEROFF

    run_guest(scenario)


async def guest_stats(client: QMPClient) -> dict[str, Any]:
    answer = await client.execute("qom-get", {"path": BALLOON, "property": "guest-stats"})
    assert isinstance(answer, dict)
    return answer


async def polling_works(guest: GuestSession, client: QMPClient) -> None:
    """With the interval set `guest-stats` follows the guest; nobody asks otherwise."""
    interval = {"path": BALLOON, "property": INTERVAL}
    assert await client.execute("qom-get", interval) == 0
    assert await client.execute("qom-set", {**interval, "value": 1}) == {}
    truth = await meminfo(guest)
    await guest.command("alloc 64")
    limit = truth["stat-free-memory"] - 64 * MIB + LISTS_BYTES
    async with asyncio.timeout(60):
        while (answer := await guest_stats(client))["stats"]["stat-free-memory"] > limit:
            await asyncio.sleep(0.1)
    assert answer["stats"]["stat-total-memory"] == truth["stat-total-memory"]
    async with asyncio.timeout(60):
        while (await guest_stats(client))["last-update"] <= answer["last-update"]:
            await asyncio.sleep(0.1)
    assert await client.execute("qom-set", {**interval, "value": 0}) == {}
    assert await client.execute("qom-get", interval) == 0


async def a_paused_guest_does_not_answer(client: QMPClient) -> None:
    await client.execute("query-balloon-stats", {"timeout": 60})
    await client.execute("stop")
    with pytest.raises(ExecuteError, match="it is paused"):
        await client.execute("query-balloon-stats", {"timeout": 0.2})
    await client.execute("cont")
    answer: Any = await client.execute("query-balloon-stats", {"timeout": 60})
    assert answer["unknown"] == {}


async def the_command_line_shows_them(guest: GuestSession, path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pyvmm", "stats", "--qmp", f"unix:{path}", "--json"),
        *("--timeout", "60"),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0
    truth = await meminfo(guest)
    assert json.loads(output)["stats"]["stat-total-memory"] == truth["stat-total-memory"]
