# SPDX-License-Identifier: Apache-2.0
"""Statistics of a real guest, compared with its own /proc/meminfo."""

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
from tests.kvm.each_dialect import each_dialect
from tests.kvm.fixture_types import RunGuest

pytestmark = pytest.mark.kvm

SLACK_BYTES = 6 * MIB
"""Tolerance for the guest's own allocations between two readings."""
PCP_BYTES = 24 * MIB
"""Tolerance for pages on per-CPU lists, which the guest does not count as free."""
NEEDS_HUGETLB = {"stat-htlb-pgalloc", "stat-htlb-pgfail"}
BALLOON = "/machine/peripheral/balloon0"
INTERVAL = "guest-stats-polling-interval"


async def fresh(guest: GuestSession) -> dict[str, int | None]:
    timed = await guest.while_running(guest.vm.balloon_statistics.fresh(60))
    assert timed.report.unknown == {}
    return timed.report.known


async def meminfo(guest: GuestSession) -> dict[str, int]:
    """Return the guest's meminfo in bytes, by the names of the statistics."""
    words = (await guest.command("meminfo")).split()
    kib = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    return {
        f"stat-{name}-memory": kib[f"{name}_kib"] * 1024 for name in ("total", "free", "available")
    }


async def assert_agrees(guest: GuestSession) -> dict[str, int]:
    """Assert that fresh statistics match the guest's meminfo; return the latter."""
    stats, expected = await fresh(guest), await meminfo(guest)
    assert stats["stat-total-memory"] == expected["stat-total-memory"]
    for name in ("stat-free-memory", "stat-available-memory"):
        assert abs((stats[name] or 0) - expected[name]) < SLACK_BYTES, name
    return expected


@pytest.mark.conformance("5.5.6.3.2-2")
@each_dialect("bitmap", "standard")
def test_statistics_match_the_guests_meminfo(run_guest: RunGuest, dialect: str) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        absent = {name for name, value in (await fresh(guest)).items() if value is None}
        assert absent <= NEEDS_HUGETLB
        idle = await assert_agrees(guest)

        await guest.command("alloc 96")
        full = await assert_agrees(guest)
        used = idle["stat-free-memory"] - full["stat-free-memory"]
        assert abs(used - 96 * MIB) < PCP_BYTES

        await guest.resize_balloon(32 * MIB // PAGE_BYTES)
        taken = await assert_agrees(guest)
        assert idle["stat-total-memory"] - taken["stat-total-memory"] == 32 * MIB

        waiting = [asyncio.create_task(fresh(guest)) for _ in range(8)]
        before = guest.vm.balloon.stats.requests
        assert all(await asyncio.gather(*waiting))
        assert guest.vm.balloon.stats.requests <= before + 2, "waiters share a report"

        guest.console.send_line("quit")
        assert (await guest.wait_for_exit()).reason is ExitReason.POWEROFF

    run_guest(scenario, dialect=dialect)


def test_qemu_clients_read_statistics(run_guest: RunGuest, path: Path) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        server = ControlServer(guest.vm, path)
        await server.start()
        client = QMPClient("test")
        await client.connect(str(path))
        try:
            await check_polling(guest, client)
            await check_paused_guest(client)
            await check_stats_command(guest, path)
        finally:
            await client.disconnect()
            await server.close()
        guest.console.send_line("quit")
        assert (await guest.wait_for_exit()).reason is ExitReason.POWEROFF

    run_guest(scenario)


async def guest_stats(client: QMPClient) -> dict[str, Any]:
    answer = await client.execute("qom-get", {"path": BALLOON, "property": "guest-stats"})
    assert isinstance(answer, dict)
    return answer


async def check_polling(guest: GuestSession, client: QMPClient) -> None:
    """`guest-stats` is updated while a polling interval is set."""
    interval = {"path": BALLOON, "property": INTERVAL}
    assert await client.execute("qom-get", interval) == 0
    assert await client.execute("qom-set", {**interval, "value": 1}) == {}
    expected = await meminfo(guest)
    await guest.command("alloc 64")
    limit = expected["stat-free-memory"] - 64 * MIB + PCP_BYTES
    async with asyncio.timeout(60):
        while (answer := await guest_stats(client))["stats"]["stat-free-memory"] > limit:
            await asyncio.sleep(0.1)
    assert answer["stats"]["stat-total-memory"] == expected["stat-total-memory"]
    async with asyncio.timeout(60):
        while (await guest_stats(client))["last-update"] <= answer["last-update"]:
            await asyncio.sleep(0.1)
    assert await client.execute("qom-set", {**interval, "value": 0}) == {}
    assert await client.execute("qom-get", interval) == 0


async def check_paused_guest(client: QMPClient) -> None:
    await client.execute("query-balloon-stats", {"timeout": 60})
    await client.execute("stop")
    with pytest.raises(ExecuteError, match="is paused"):
        await client.execute("query-balloon-stats", {"timeout": 0.2})
    await client.execute("cont")
    answer: Any = await client.execute("query-balloon-stats", {"timeout": 60})
    assert answer["unknown"] == {}


async def check_stats_command(guest: GuestSession, path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pyvmm", "stats", "--qmp", f"unix:{path}", "--json"),
        *("--timeout", "60"),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0
    expected = await meminfo(guest)
    assert json.loads(output)["stats"]["stat-total-memory"] == expected["stat-total-memory"]
