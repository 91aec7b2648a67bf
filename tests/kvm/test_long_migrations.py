# SPDX-License-Identifier: Apache-2.0
"""Migrate a guest that continuously rewrites and verifies its memory, repeatedly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from pyvmm.harness.guest_session import GuestSession, guest_session, incoming_session
from pyvmm.sockets.addresses import parse_migration_address
from pyvmm.sockets.listener import MigrationListener
from pyvmm.sockets.tls import Security
from tests.kvm.fault_injection import REPETITIONS
from tests.kvm.fixture_types import MakeConfig
from tests.kvm.migration_endpoints import migration_result, start_migration
from tests.kvm.verifying_guest import (
    BALLOON_MIB,
    MEMORY_MIB,
    PATTERN_MIB,
    assert_heartbeats_contiguous,
    min_median_max,
    set_balloon_target,
    start_verifying,
    uptime,
    verify_and_power_off,
    verify_more,
    wait_for_balloon,
    wait_for_heartbeat,
)

pytestmark = [pytest.mark.kvm, pytest.mark.long, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("vcpus", [1, 4])
@pytest.mark.parametrize("dialect", ["bitmap", "standard"])
def test_no_data_is_lost_in_repeated_migrations(
    make_config: MakeConfig,
    address: str,
    figure: Callable[[str], None],
    dialect: str,
    vcpus: int,
) -> None:
    answers: list[dict[str, Any]] = []
    begin = time.monotonic()

    async def migrate(guest: GuestSession, to: str, stack: AsyncExitStack) -> GuestSession:
        listener = MigrationListener(parse_migration_address(to), Security())
        start_migration(guest, to)
        there = await stack.enter_async_context(incoming_session(listener))
        answers.append(await migration_result(guest))
        assert answers[-1]["status"] == "completed", answers[-1]
        assert guest.vm.status == "postmigrate"
        return there

    async def main() -> None:
        offer = ["free-page-hint"] if dialect == "standard" else []
        config = make_config(memory_mib=MEMORY_MIB, vcpus=vcpus, dialect=dialect, offer=offer)
        here = AsyncExitStack()
        guest = await here.enter_async_context(guest_session(config))
        await start_verifying(guest, PATTERN_MIB)
        await wait_for_balloon(guest, BALLOON_MIB[0])
        report, clock = await verify_more(guest), await uptime(guest)
        for number in range(REPETITIONS):
            balloon = BALLOON_MIB[(number + 1) % 2]
            set_balloon_target(guest, balloon)
            there = AsyncExitStack()
            moved = await migrate(guest, f"{address}{number}", there)
            printed = guest.console.text
            report = await verify_more(moved, report)
            await wait_for_heartbeat(moved)
            now = await uptime(moved)
            assert clock <= now, f"the clock went from {clock} to {now}"
            clock = now
            assert guest.console.text == printed, "the source still prints"
            assert_heartbeats_contiguous(printed, moved.console.text)
            await here.aclose()
            here, guest = there, moved
            await wait_for_balloon(guest, balloon)
            print(
                f"{time.monotonic() - begin:.0f} s, migration {number + 1}: {answers[-1]}\n"
                f"  {report}",
                flush=True,
            )
        last = await verify_and_power_off(guest)
        await here.aclose()
        down = min_median_max([answer["downtime"] for answer in answers], "ms")
        total = min_median_max([answer["total-time"] for answer in answers], "ms")
        sent = sum(answer["ram"]["transferred"] for answer in answers) >> 20
        figure(
            f"{REPETITIONS} migrations, {PATTERN_MIB} MiB, {dialect:8} {vcpus} vCPUs,"
            f" {time.monotonic() - begin:.0f} s: down {down}, total {total}, {sent} MiB; {last}"
        )

    asyncio.run(main())
