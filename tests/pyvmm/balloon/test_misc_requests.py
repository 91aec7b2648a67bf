# SPDX-License-Identifier: Apache-2.0
"""Requests over the misc queue: turns, time-outs, and every error.

The driver is written in Python and uses a real device through its registers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from devices.balloon.features import MISC_VQ
from devices.testing.balloon.misc import DROP_CACHE, GET_UNUSED_PAGES, SYNC, MiscGuest, MiscRequest
from devices.testing.driver import ALL_FEATURES
from pyvmm.balloon.guest_requests import (
    DriverUnavailable,
    GuestAccess,
    GuestEnded,
    GuestPaused,
    GuestReset,
    InvalidResponse,
    RequestTimeout,
    RequestUnsupported,
)
from pyvmm.balloon.misc_requests import MiscRequests
from pyvmm.units import MIB
from pyvmm_native.runs import PageRuns
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm

SOON_S = 0.05
LONG_S = 20.0

Scenario = Callable[[InMemoryVm, MiscGuest, MiscRequests], Coroutine[Any, Any, None]]


def run_scenario(scenario: Scenario) -> None:
    """Run a scenario on a VM whose guest responds at once."""

    async def main() -> None:
        vm = InMemoryVm(64 * MIB)
        requests = vm.misc_requests
        await asyncio.wait_for(scenario(vm, vm.misc_guest, requests), 60)

    asyncio.run(main())


def silence(guest: MiscGuest) -> None:
    """Make the guest respond only when a test tells it to."""
    guest.board.msi.on_trigger = lambda vector: None


async def sent(guest: MiscGuest) -> MiscRequest:
    """Wait for the next request that reaches a silent guest, and return it."""
    while not (requests := guest.misc.take_requests()):
        await asyncio.sleep(0)
    (request,) = requests
    return request


def test_unused_pages_are_those_that_the_guest_reports() -> None:
    async def scenario(_: InMemoryVm, guest: MiscGuest, requests: MiscRequests) -> None:
        guest.unused = {7, 8, 9, 4000}
        assert await requests.unused_pages(LONG_S) == PageRuns([(7, 3), (4000, 1)])
        guest.unused.clear()
        assert await requests.unused_pages(LONG_S) == PageRuns()

    run_scenario(scenario)


def test_clean_caches_are_dropped_and_dirty_ones_after_a_sync() -> None:
    async def scenario(_: InMemoryVm, guest: MiscGuest, requests: MiscRequests) -> None:
        guest.unused, guest.cached, guest.dirty = {1}, {2, 3}, {3}
        await requests.drop_caches(LONG_S)
        assert await requests.unused_pages(LONG_S) == PageRuns([(1, 2)])
        await requests.sync_filesystems(LONG_S)
        await requests.drop_caches(LONG_S)
        assert await requests.unused_pages(LONG_S) == PageRuns([(1, 3)])
        commands = [request.cmd for request in guest.requests]
        assert commands == [1, 0, SYNC, DROP_CACHE, GET_UNUSED_PAGES]

    run_scenario(scenario)


def test_callers_take_turns() -> None:
    async def scenario(vm: InMemoryVm, guest: MiscGuest, requests: MiscRequests) -> None:
        silence(guest)
        done: list[int] = []

        async def caller(number: int) -> PageRuns:
            pages = await requests.unused_pages(LONG_S)
            done.append(number)
            return pages

        callers = [asyncio.create_task(caller(number)) for number in range(4)]
        for number in range(4):
            request = await sent(guest)
            for _ in range(10):
                await asyncio.sleep(0)
            assert guest.misc.take_requests() == [], "one at a time"
            assert done == list(range(number))
            guest.misc.respond(request, [100 + number])
            guest.misc.offer_buffer()
            assert await callers[number] == PageRuns([(100 + number, 1)])
        assert done == [0, 1, 2, 3]

    run_scenario(scenario)


def test_a_request_without_a_response_times_out() -> None:
    async def scenario(_: InMemoryVm, guest: MiscGuest, requests: MiscRequests) -> None:
        silence(guest)
        with pytest.raises(RequestTimeout, match=r"not responded within 0\.05 s"):
            await requests.unused_pages(SOON_S)

    run_scenario(scenario)


def test_a_late_response_does_not_complete_the_next_request() -> None:
    async def scenario(_: InMemoryVm, guest: MiscGuest, requests: MiscRequests) -> None:
        silence(guest)
        with pytest.raises(RequestTimeout):
            await requests.unused_pages(SOON_S)
        old = await sent(guest)
        waiting = asyncio.create_task(requests.unused_pages(LONG_S))
        await asyncio.sleep(0)
        guest.misc.respond(old, [1])  # the driver was just slow
        guest.misc.respond(old, [2])
        guest.misc.offer_buffer()
        new = await sent(guest)
        assert new.id == old.id + 1
        guest.misc.respond(new, [3])
        assert await waiting == PageRuns([(3, 1)])
        assert guest.board.balloon.misc.late_messages == 2

    run_scenario(scenario)


def test_a_cancelled_request_is_not_sent_when_the_buffer_comes() -> None:
    """Of three requests that time out, only the first had a buffer and was sent."""

    async def scenario(vm: InMemoryVm, guest: MiscGuest, requests: MiscRequests) -> None:
        silence(guest)
        for _ in range(3):
            with pytest.raises(RequestTimeout):
                await requests.drop_caches(SOON_S)
        assert await sent(guest) == MiscRequest(DROP_CACHE, 1)
        guest.misc.offer_buffer()
        assert guest.misc.take_requests() == []
        waiting = asyncio.create_task(requests.sync_filesystems(LONG_S))
        request = await sent(guest)
        assert request == MiscRequest(SYNC, 2)
        guest.misc.respond(request)
        await waiting

    run_scenario(scenario)


def test_the_time_out_includes_the_wait_for_the_turn() -> None:
    async def scenario(_: InMemoryVm, guest: MiscGuest, requests: MiscRequests) -> None:
        silence(guest)
        first = asyncio.create_task(requests.unused_pages(LONG_S))
        request = await sent(guest)
        with pytest.raises(RequestTimeout):
            await requests.unused_pages(SOON_S)
        guest.misc.respond(request, [5])
        assert await first == PageRuns([(5, 1)])

    run_scenario(scenario)


def test_a_cancelled_caller_does_not_affect_the_next_request() -> None:
    async def scenario(_: InMemoryVm, guest: MiscGuest, requests: MiscRequests) -> None:
        silence(guest)
        gone = asyncio.create_task(requests.unused_pages(LONG_S))
        old = await sent(guest)
        gone.cancel()
        await asyncio.wait({gone})
        waiting = asyncio.create_task(requests.unused_pages(LONG_S))
        await asyncio.sleep(0)
        guest.misc.respond(old, [1])
        guest.misc.offer_buffer()
        guest.misc.respond(await sent(guest), [2])
        assert await waiting == PageRuns([(2, 1)])

    run_scenario(scenario)


# Errors.


def test_no_request_is_sent_to_a_paused_guest() -> None:
    async def scenario(vm: InMemoryVm, guest: MiscGuest, requests: MiscRequests) -> None:
        vm.pause()
        with pytest.raises(GuestPaused, match="is paused"):
            await requests.unused_pages(LONG_S)
        assert guest.misc.take_requests() == []
        vm.resume()
        assert (await requests.unused_pages(LONG_S)).pages == len(guest.unused)

    run_scenario(scenario)


def test_a_request_outlives_a_pause_that_ends_before_its_time_out() -> None:
    async def scenario(vm: InMemoryVm, guest: MiscGuest, requests: MiscRequests) -> None:
        waiting = asyncio.create_task(requests.unused_pages(SOON_S))
        await asyncio.sleep(0)
        vm.pause()
        with pytest.raises(GuestPaused):
            await waiting
        assert guest.requests == []
        vm.resume()
        waiting = asyncio.create_task(requests.unused_pages(LONG_S))
        await asyncio.sleep(0)
        vm.pause()
        await asyncio.sleep(SOON_S)
        vm.resume()
        assert (await waiting).pages == len(guest.unused), "in time after all"

    run_scenario(scenario)


def test_a_driver_without_misc_vq_is_unavailable() -> None:
    async def scenario(_: InMemoryVm, guest: MiscGuest, requests: MiscRequests) -> None:
        guest.driver.reset()
        with pytest.raises(DriverUnavailable, match="MISC_VQ"):
            await requests.unused_pages(LONG_S)
        guest.start(features=ALL_FEATURES & ~MISC_VQ)
        with pytest.raises(DriverUnavailable):
            await requests.unused_pages(LONG_S)
        guest.start()
        assert (await requests.unused_pages(LONG_S)).pages == len(guest.unused)

    run_scenario(scenario)


def test_a_request_that_the_driver_does_not_know_is_unsupported() -> None:
    async def scenario(_: InMemoryVm, guest: MiscGuest, requests: MiscRequests) -> None:
        guest.commands = {GET_UNUSED_PAGES}
        for request in (requests.drop_caches, requests.sync_filesystems):
            with pytest.raises(RequestUnsupported, match="does not know"):
                await request(LONG_S)
        assert (await requests.unused_pages(LONG_S)).pages == len(guest.unused)

    run_scenario(scenario)


def test_pages_outside_ram_are_an_invalid_response() -> None:
    async def scenario(_: InMemoryVm, guest: MiscGuest, requests: MiscRequests) -> None:
        guest.unused.add(64 * MIB // 4096)
        with pytest.raises(InvalidResponse, match=r"1 of \d+ pages are not RAM"):
            await requests.unused_pages(LONG_S)

    run_scenario(scenario)


def test_a_reset_on_a_vcpu_thread_fails_the_request() -> None:
    async def scenario(_: InMemoryVm, guest: MiscGuest, __: MiscRequests) -> None:
        silence(guest)
        loop, lock = asyncio.get_running_loop(), threading.Lock()

        def call_soon(callback: Callable[..., None], *args: object) -> None:
            loop.call_soon_threadsafe(callback, *args)

        access = GuestAccess(guest.board.balloon, lock, call_soon, lambda: False)
        requests = MiscRequests(access)
        waiting = asyncio.create_task(requests.unused_pages(LONG_S))
        await sent(guest)

        def vcpu() -> None:
            with lock:
                guest.driver.reset()

        await asyncio.to_thread(vcpu)
        with pytest.raises(GuestReset, match="was reset"):
            await waiting

    run_scenario(scenario)


def test_the_end_of_the_guest_fails_all_requests() -> None:
    async def scenario(vm: InMemoryVm, guest: MiscGuest, requests: MiscRequests) -> None:
        silence(guest)
        callers = [asyncio.create_task(requests.unused_pages(LONG_S)) for _ in range(3)]
        await sent(guest)
        vm.quit()
        for caller in callers:
            with pytest.raises(GuestEnded, match="has ended"):
                await caller
        with pytest.raises(GuestEnded):
            await requests.drop_caches(LONG_S)

    run_scenario(scenario)
