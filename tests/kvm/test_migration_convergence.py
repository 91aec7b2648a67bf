# SPDX-License-Identifier: Apache-2.0
"""Auto-converge: a real guest that writes faster than the connection migrates once throttled.

The speed of its vCPUs is how many bytes of memory its program rewrites in a second.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

from pyvmm.errors import UserError
from pyvmm.harness.guest_session import GuestSession, incoming_session
from pyvmm.machine.exit_result import ExitReason
from pyvmm.qmp import commands
from pyvmm.qmp.messages import Request
from pyvmm.sockets.addresses import parse_migration_address
from pyvmm.sockets.listener import MigrationListener
from pyvmm.sockets.tls import Security
from pyvmm.units import MIB
from tests.kvm.fixture_types import RunGuest

pytestmark = pytest.mark.kvm

HOT_MIB = 8
PARAMETERS = {
    "max-bandwidth": 4 * MIB,
    "downtime-limit": 0,
    "cpu-throttle-initial": 80,
    "cpu-throttle-increment": 19,
    "max-cpu-throttle": 80,
}
LONG_ROUND = {"max-bandwidth": MIB}
"""Makes a round take seconds while the speed is measured; a throttled guest dirties so little that
short rounds would converge."""
CONVERGES = {"max-bandwidth": 4 * MIB, "downtime-limit": 300, "max-cpu-throttle": 99}
"""Lets the migration complete. Until then the guest must be fast enough to reply."""
ROUNDS = 5
"""After this many rounds of about equal length a migration does not converge."""
HALF = 0.5
"""Threshold of the speed: well below the noise of a busy host, well above a throttled guest."""
SAMPLES = 3


def ask(guest: GuestSession, command: str, **arguments: Any) -> Any:
    return commands.execute(guest.vm, Request(command, arguments))


async def rewritten_bytes(guest: GuestSession) -> int:
    found = re.search(r"bytes (\d+)", await guest.command("report"))
    assert found
    return int(found[1])


async def speed(guest: GuestSession) -> float:
    """Return the bytes rewritten in a second, by the host's clock."""
    loop = asyncio.get_running_loop()
    before, begin = await rewritten_bytes(guest), loop.time()
    await asyncio.sleep(2)
    return (await rewritten_bytes(guest) - before) / (loop.time() - begin)


async def speed_in_a_long_round(guest: GuestSession) -> float:
    ask(guest, "migrate-set-parameters", **LONG_ROUND)
    return await speed(guest)


async def best_speed(guest: GuestSession) -> float:
    return max([await speed(guest) for _ in range(SAMPLES)])


async def wait_for_progress(
    guest: GuestSession, condition: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Wait until the reply of query-migrate meets `condition`; return it."""
    while True:
        answer: dict[str, Any] = ask(guest, "query-migrate")
        assert answer["status"] in ("setup", "active"), answer
        if condition(answer):
            return answer
        await asyncio.sleep(0.02)


async def migration_result(guest: GuestSession) -> dict[str, Any]:
    while guest.vm.migrations.active:
        await asyncio.sleep(0.02)
    answer: dict[str, Any] = ask(guest, "query-migrate")
    return answer


def listener(address: str) -> MigrationListener:
    return MigrationListener(parse_migration_address(address), Security())


async def expect_no_guest(address: str) -> None:
    """Wait for a guest whose migration is cancelled."""
    with pytest.raises(UserError, match="no guest has arrived"):
        async with incoming_session(listener(address)):
            pass


async def cancelled_migration(
    guest: GuestSession,
    address: str,
    condition: Callable[[dict[str, Any]], bool],
    meanwhile: Callable[[GuestSession], Any] = lambda guest: asyncio.sleep(0),
) -> tuple[dict[str, Any], Any]:
    """Start to migrate, await `condition` and `meanwhile`, then cancel.

    Return the reply that met `condition`, and the result of `meanwhile`.
    """
    waiting = asyncio.create_task(expect_no_guest(address))
    await asyncio.sleep(0)
    ask(guest, "migrate", uri=address)
    answer = await wait_for_progress(guest, condition)
    result = await meanwhile(guest)
    ask(guest, "migrate_cancel")
    assert (await migration_result(guest))["status"] == "cancelled"
    await waiting
    return answer, result


@pytest.mark.parametrize("vcpus", [1, 2])
def test_auto_converge_lets_a_writing_guest_migrate(
    run_guest: RunGuest, address: str, figure: Callable[[str], None], vcpus: int
) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        for command in (f"alloc {HOT_MIB}", "churn 7"):
            await guest.command(command)
        full_speed = await best_speed(guest)
        ask(guest, "migrate-set-parameters", **PARAMETERS)

        answer, _ = await cancelled_migration(
            guest, f"{address}1", lambda answer: answer["ram"]["dirty-sync-count"] >= ROUNDS
        )
        assert "cpu-throttle-percentage" not in answer
        assert answer["expected-downtime"] > CONVERGES["downtime-limit"]
        rate = answer["ram"]["dirty-pages-rate"]

        on = {"capability": "auto-converge", "state": True}
        ask(guest, "migrate-set-capabilities", capabilities=[on])
        answer, slow = await cancelled_migration(
            guest,
            f"{address}2",
            lambda answer: "cpu-throttle-percentage" in answer,
            speed_in_a_long_round,
        )
        back = await best_speed(guest)
        figure(
            f"convergence {vcpus} vCPUs: {full_speed / 1e6:.1f} MB/s rewritten,"
            f" {rate} dirty pages/s; at {answer['cpu-throttle-percentage']} %"
            f" {slow / 1e6:.1f}, cancelled {back / 1e6:.1f}"
        )
        assert slow < HALF * full_speed
        assert back > HALF * full_speed

        ask(guest, "migrate-set-parameters", **CONVERGES)
        destination = listener(f"{address}3")
        ask(guest, "migrate", uri=f"{address}3")
        async with incoming_session(destination) as there:
            answer = await migration_result(guest)
            assert answer["status"] == "completed", answer
            assert "cpu-throttle-percentage" not in answer
            moved = await best_speed(there)
            figure(
                f"convergence {vcpus} vCPUs: moved in {answer['total-time']} ms, down"
                f" {answer['downtime']}, {answer['ram']['dirty-sync-count']} rounds;"
                f" {moved / 1e6:.1f} MB/s"
            )
            assert moved > HALF * full_speed
            reply = await there.command("stop")
            assert " wrong 0 " in reply
            assert "backward_us 0" in reply
            there.console.send_line("quit")
            assert (await there.wait_for_exit()).reason is ExitReason.POWEROFF

    run_guest(scenario, memory_mib=128, vcpus=vcpus)
