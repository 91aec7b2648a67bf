# SPDX-License-Identifier: Apache-2.0
"""A real guest that writes faster than the connection carries: it moves when it is slowed down.

How fast its processors are it says itself: how much of its memory its program rewrites in a second.
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
from pyvmm.sockets.transport import MigrationListener, Security, parse_migration_address
from pyvmm.units import MIB
from tests.kvm.guests import RunGuest

pytestmark = pytest.mark.kvm

HOT_MIB = 8
PARAMETERS = {
    "max-bandwidth": 4 * MIB,
    "downtime-limit": 0,
    "cpu-throttle-initial": 80,
    "cpu-throttle-increment": 19,
    "max-cpu-throttle": 80,
}
LINGERS = {"max-bandwidth": MIB}
"""While its speed is measured: the round takes seconds. Between short ones nothing changes as long
as it rests, and it would be gone."""
MOVES = {"max-bandwidth": 4 * MIB, "downtime-limit": 300, "max-cpu-throttle": 99}
"""When it shall move. Before, it has to be fast enough to answer."""
ROUNDS = 5
"""So many, each about as long as the one before, do not come to an end."""
HALF = 0.5
"""Of its speed: far from what a busy host changes, and farther from what is left by throttling."""
LOOKS = 3


def ask(guest: GuestSession, command: str, **arguments: Any) -> Any:
    return commands.execute(guest.machine, Request(command, arguments))


async def rewritten(guest: GuestSession) -> int:
    found = re.search(r"bytes (\d+)", await guest.command("report"))
    assert found
    return int(found[1])


async def speed(guest: GuestSession) -> float:
    """Bytes rewritten in a second, by the host's clock."""
    loop = asyncio.get_running_loop()
    before, begin = await rewritten(guest), loop.time()
    await asyncio.sleep(2)
    return (await rewritten(guest) - before) / (loop.time() - begin)


async def speed_in_a_long_round(guest: GuestSession) -> float:
    ask(guest, "migrate-set-parameters", **LINGERS)
    return await speed(guest)


async def best_speed(guest: GuestSession) -> float:
    return max([await speed(guest) for _ in range(LOOKS)])


async def shown(guest: GuestSession, due: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait until query-migrate shows what is `due`; returns it."""
    while True:
        answer: dict[str, Any] = ask(guest, "query-migrate")
        assert answer["status"] in ("setup", "active"), answer
        if due(answer):
            return answer
        await asyncio.sleep(0.02)


async def over(guest: GuestSession) -> dict[str, Any]:
    while guest.machine.migrations.active:
        await asyncio.sleep(0.02)
    answer: dict[str, Any] = ask(guest, "query-migrate")
    return answer


def listener(address: str) -> MigrationListener:
    return MigrationListener(parse_migration_address(address), Security())


async def until_given_up(address: str) -> None:
    """Wait for a guest that will not come."""
    with pytest.raises(UserError, match="no guest has arrived"):
        async with incoming_session(listener(address)):
            pass


async def cancelled(
    guest: GuestSession,
    address: str,
    due: Callable[[dict[str, Any]], bool],
    meanwhile: Callable[[GuestSession], Any] = lambda guest: asyncio.sleep(0),
) -> tuple[dict[str, Any], Any]:
    """Have it begin to move and cancel after `meanwhile`; what was shown, what that returned."""
    waiting = asyncio.create_task(until_given_up(address))
    await asyncio.sleep(0)
    ask(guest, "migrate", uri=address)
    answer = await shown(guest, due)
    result = await meanwhile(guest)
    ask(guest, "migrate_cancel")
    assert (await over(guest))["status"] == "cancelled"
    await waiting
    return answer, result


@pytest.mark.parametrize("vcpus", [1, 2])
def test_a_guest_that_writes_all_the_time_moves_when_it_is_slowed_down(
    run_guest: RunGuest, address: str, figure: Callable[[str], None], vcpus: int
) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        for command in (f"alloc {HOT_MIB}", "churn 7"):
            await guest.command(command)
        full = await best_speed(guest)
        ask(guest, "migrate-set-parameters", **PARAMETERS)

        answer, _ = await cancelled(
            guest, f"{address}1", lambda answer: answer["ram"]["dirty-sync-count"] >= ROUNDS
        )
        assert "cpu-throttle-percentage" not in answer
        assert answer["expected-downtime"] > MOVES["downtime-limit"]
        rate = answer["ram"]["dirty-pages-rate"]

        on = {"capability": "auto-converge", "state": True}
        ask(guest, "migrate-set-capabilities", capabilities=[on])
        answer, slow = await cancelled(
            guest,
            f"{address}2",
            lambda answer: "cpu-throttle-percentage" in answer,
            speed_in_a_long_round,
        )
        back = await best_speed(guest)
        figure(
            f"convergence {vcpus} vCPUs: {full / 1e6:.1f} MB/s rewritten, {rate} dirty pages/s; at"
            f" {answer['cpu-throttle-percentage']} % {slow / 1e6:.1f}, cancelled {back / 1e6:.1f}"
        )
        assert slow < HALF * full
        assert back > HALF * full

        ask(guest, "migrate-set-parameters", **MOVES)
        destination = listener(f"{address}3")
        ask(guest, "migrate", uri=f"{address}3")
        async with incoming_session(destination) as there:
            answer = await over(guest)
            assert answer["status"] == "completed", answer
            assert "cpu-throttle-percentage" not in answer
            moved = await best_speed(there)
            figure(
                f"convergence {vcpus} vCPUs: moved in {answer['total-time']} ms, down"
                f" {answer['downtime']}, {answer['ram']['dirty-sync-count']} rounds;"
                f" {moved / 1e6:.1f} MB/s"
            )
            assert moved > HALF * full
            told = await there.command("still")
            assert " wrong 0 " in told
            assert "backward_us 0" in told
            there.console.send_line("quit")
            assert (await there.wait_for_exit()).ending is ExitReason.POWEROFF

    run_guest(scenario, memory_mib=128, vcpus=vcpus)
