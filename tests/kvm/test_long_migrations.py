# SPDX-License-Identifier: Apache-2.0
"""Twenty moves in a row: a guest that rewrites its memory all the time never finds a wrong byte."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from pyvmm.harness.guest_session import GuestSession, guest_session, incoming_session
from pyvmm.sockets.transport import MigrationListener, Security, parse_migration_address
from tests.kvm.churning import (
    BALLOON_MIB,
    MEMORY_MIB,
    PATTERN_MIB,
    aim_balloon,
    all_is_well,
    assert_one_life,
    balloon_reaches,
    beats_on,
    churning,
    goes_on,
    spread,
    uptime,
)
from tests.kvm.guests import MakeConfig
from tests.kvm.moments import TRIES
from tests.kvm.moving import migrate, migrated

pytestmark = [pytest.mark.kvm, pytest.mark.long, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("vcpus", [1, 4])
@pytest.mark.parametrize("dialect", ["bitmap", "standard"])
def test_nothing_is_lost_in_twenty_moves(
    make_config: MakeConfig,
    address: str,
    figure: Callable[[str], None],
    dialect: str,
    vcpus: int,
) -> None:
    answers: list[dict[str, Any]] = []
    begin = time.monotonic()

    async def move(guest: GuestSession, place: str, stack: AsyncExitStack) -> GuestSession:
        listener = MigrationListener(parse_migration_address(place), Security())
        migrate(guest, place)
        there = await stack.enter_async_context(incoming_session(listener))
        answers.append(await migrated(guest))
        assert answers[-1]["status"] == "completed", answers[-1]
        assert guest.machine.status == "postmigrate"
        return there

    async def main() -> None:
        offer = ["free-page-hint"] if dialect == "standard" else []
        config = make_config(memory_mib=MEMORY_MIB, vcpus=vcpus, dialect=dialect, offer=offer)
        here = AsyncExitStack()
        guest = await here.enter_async_context(guest_session(config))
        await churning(guest, PATTERN_MIB)
        await balloon_reaches(guest, BALLOON_MIB[0])
        report, clock = await goes_on(guest), await uptime(guest)
        for number in range(TRIES):
            balloon = BALLOON_MIB[(number + 1) % 2]
            aim_balloon(guest, balloon)
            there = AsyncExitStack()
            moved = await move(guest, f"{address}{number}", there)
            printed = guest.console.text
            report = await goes_on(moved, report)
            await beats_on(moved)
            now = await uptime(moved)
            assert clock <= now, f"the clock went from {clock} to {now}"
            clock = now
            assert guest.console.text == printed, "it still prints where it was"
            assert_one_life(printed, moved.console.text)
            await here.aclose()
            here, guest = there, moved
            await balloon_reaches(guest, balloon)
            print(
                f"{time.monotonic() - begin:.0f} s, move {number + 1}: {answers[-1]}\n  {report}",
                flush=True,
            )
        last = await all_is_well(guest)
        await here.aclose()
        down = spread([answer["downtime"] for answer in answers], "ms")
        total = spread([answer["total-time"] for answer in answers], "ms")
        sent = sum(answer["ram"]["transferred"] for answer in answers) >> 20
        figure(
            f"{TRIES} moves, {PATTERN_MIB} MiB, {dialect:8} {vcpus} vCPUs,"
            f" {time.monotonic() - begin:.0f} s: down {down}, total {total}, {sent} MiB; {last}"
        )

    asyncio.run(main())
