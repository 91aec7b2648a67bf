# SPDX-License-Identifier: Apache-2.0
"""Free page hints: held for the length of a block, by one caller at a time, with time-outs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from devices.testing.balloon.hinting import HintGuest
from pyvmm.balloon.free_page_hints import FreePageHints
from pyvmm.balloon.guest_requests import (
    DriverUnavailable,
    GuestEnded,
    GuestPaused,
    GuestReset,
    RequestTimeout,
)
from pyvmm.qmp.commands import execute
from pyvmm.qmp.messages import QmpError, Request
from pyvmm.units import MIB
from pyvmm_native.runs import PageRuns
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm

SOON_S = 0.05
LONG_S = 20.0
HINTED = PageRuns([(1024, 1024), (3072, 256)])

Scenario = Callable[[InMemoryVm, HintGuest, FreePageHints], Coroutine[Any, Any, None]]


def run_scenario(scenario: Scenario) -> None:
    """Run a scenario on a VM whose guest gives hints at once."""

    async def main() -> None:
        vm = InMemoryVm(64 * MIB)
        hints = vm.free_page_hints
        await asyncio.wait_for(scenario(vm, vm.hint_guest, hints), 60)

    asyncio.run(main())


async def settle() -> None:
    """Let the guest see the last change of the configuration space."""
    for _ in range(3):
        await asyncio.sleep(0)


def test_hints_are_held_for_the_block() -> None:
    async def scenario(_: InMemoryVm, guest: HintGuest, hints: FreePageHints) -> None:
        async with hints.held(LONG_S) as held:
            assert held.complete
            assert held.pages == HINTED
            assert guest.hinted
        await settle()
        assert not guest.hinted, "the guest has its pages back"
        assert guest.board.ram.discarded == []

    run_scenario(scenario)


def test_callers_take_turns_and_time_out_while_they_wait() -> None:
    async def scenario(_: InMemoryVm, guest: HintGuest, hints: FreePageHints) -> None:
        async with hints.held(LONG_S):
            with pytest.raises(RequestTimeout, match="in use by another request"):
                async with hints.held(SOON_S):
                    pytest.fail("two callers hold the hints")
            assert guest.hinted, "and the first still holds them"
        await settle()
        async with hints.held(LONG_S) as held:
            assert held.pages == HINTED
        assert guest.rounds == 2

    run_scenario(scenario)


def test_a_round_without_end_is_stopped_and_its_hints_are_valid() -> None:
    async def scenario(_: InMemoryVm, guest: HintGuest, hints: FreePageHints) -> None:
        guest.endless = True
        async with hints.held(SOON_S) as held:
            assert not held.complete
            assert held.pages == HINTED, "what it has hinted is good"
        await settle()
        assert not guest.hinted
        guest.endless = False
        async with hints.held(LONG_S) as held:
            assert held.complete

    run_scenario(scenario)


def test_a_paused_guest_gives_no_hints() -> None:
    async def scenario(vm: InMemoryVm, guest: HintGuest, hints: FreePageHints) -> None:
        vm.pause()
        with pytest.raises(GuestPaused):
            async with hints.held(LONG_S):
                pytest.fail("a paused guest gave hints")
        vm.resume()
        guest.endless = True
        asyncio.get_running_loop().call_later(SOON_S / 2, vm.pause)
        with pytest.raises(GuestPaused):
            async with hints.held(SOON_S):
                pytest.fail("paused meanwhile")

    run_scenario(scenario)


@pytest.mark.parametrize("error", [GuestReset, GuestEnded])
def test_a_reset_or_the_end_of_the_guest_fails_the_request(error: type[Exception]) -> None:
    async def scenario(vm: InMemoryVm, guest: HintGuest, hints: FreePageHints) -> None:
        guest.endless = True
        leave = guest.driver.reset if error is GuestReset else vm.quit
        asyncio.get_running_loop().call_later(SOON_S, leave)
        with pytest.raises(error):
            async with hints.held(LONG_S):
                pytest.fail("it gave all its hints")
        with pytest.raises(DriverUnavailable if error is GuestReset else GuestEnded):
            async with hints.held(LONG_S):
                pytest.fail("no driver is available")

    run_scenario(scenario)


def test_a_cancelled_caller_releases_the_hints() -> None:
    async def scenario(_: InMemoryVm, guest: HintGuest, hints: FreePageHints) -> None:
        async def hold() -> None:
            async with hints.held(LONG_S):
                await asyncio.sleep(LONG_S)

        task = asyncio.create_task(hold())
        while not guest.hinted:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        await settle()
        assert not guest.hinted
        async with hints.held(LONG_S) as held:
            assert held.pages == HINTED

    run_scenario(scenario)


def test_the_command_reports_the_hints_and_releases_them() -> None:
    async def scenario(vm: InMemoryVm, guest: HintGuest, _: FreePageHints) -> None:
        request = Request("query-free-page-hints", {"runs": 1, "timeout": LONG_S})
        answer = await execute(vm, request)
        assert answer.pop("seconds") >= 0
        assert answer == {
            "complete": True,
            "ram-pages": 64 * MIB // 4096,
            "unused-pages": 1280,
            "share": round(1280 / 16384, 6),
            "largest-run": 1024,
            "run-count": 2,
            "runs": [[1024, 1024]],
        }
        await settle()
        assert not guest.hinted
        guest.driver.reset()
        with pytest.raises(QmpError, match="no balloon driver with FREE_PAGE_HINT"):
            await execute(vm, Request("query-free-page-hints", {}))

    run_scenario(scenario)
