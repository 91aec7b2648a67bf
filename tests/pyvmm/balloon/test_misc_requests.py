# SPDX-License-Identifier: Apache-2.0
"""Questions to a guest on the event loop: turns, time-outs, and every way to have no answer.

The driver is one in Python behind a real device and its registers.
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
from tests.pyvmm.qmp.in_memory_machine import InMemoryMachine

SOON_S = 0.05
LONG_S = 20.0

Scenario = Callable[[InMemoryMachine, MiscGuest, MiscRequests], Coroutine[Any, Any, None]]


def play(scenario: Scenario) -> None:
    """Run a scenario on a machine whose guest answers at once."""

    async def main() -> None:
        machine = InMemoryMachine(64 * MIB)
        questions = machine.misc_requests
        await asyncio.wait_for(scenario(machine, machine.misc_guest, questions), 60)

    asyncio.run(main())


def silence(guest: MiscGuest) -> None:
    """From now on the guest answers only when a test says so."""
    guest.board.msi.on_trigger = lambda vector: None


async def asked(guest: MiscGuest) -> MiscRequest:
    """The question that reaches a silent guest next."""
    while not (questions := guest.misc.take_requests()):
        await asyncio.sleep(0)
    (question,) = questions
    return question


def test_unused_pages_are_what_the_guest_says() -> None:
    async def scenario(_: InMemoryMachine, guest: MiscGuest, ask: MiscRequests) -> None:
        guest.unused = {7, 8, 9, 4000}
        assert await ask.unused_pages(LONG_S) == PageRuns([(7, 3), (4000, 1)])
        guest.unused.clear()
        assert await ask.unused_pages(LONG_S) == PageRuns()

    play(scenario)


def test_caches_are_dropped_once_they_are_clean() -> None:
    async def scenario(_: InMemoryMachine, guest: MiscGuest, ask: MiscRequests) -> None:
        guest.unused, guest.cached, guest.dirty = {1}, {2, 3}, {3}
        await ask.drop_caches(LONG_S)
        assert await ask.unused_pages(LONG_S) == PageRuns([(1, 2)])
        await ask.sync_filesystems(LONG_S)
        await ask.drop_caches(LONG_S)
        assert await ask.unused_pages(LONG_S) == PageRuns([(1, 3)])
        commands = [question.cmd for question in guest.requests]
        assert commands == [1, 0, SYNC, DROP_CACHE, GET_UNUSED_PAGES]

    play(scenario)


def test_callers_take_turns() -> None:
    async def scenario(machine: InMemoryMachine, guest: MiscGuest, ask: MiscRequests) -> None:
        silence(guest)
        done: list[int] = []

        async def caller(number: int) -> PageRuns:
            pages = await ask.unused_pages(LONG_S)
            done.append(number)
            return pages

        callers = [asyncio.create_task(caller(number)) for number in range(4)]
        for number in range(4):
            question = await asked(guest)
            for _ in range(10):
                await asyncio.sleep(0)
            assert guest.misc.take_requests() == [], "one at a time"
            assert done == list(range(number))
            guest.misc.respond(question, [100 + number])
            guest.misc.offer_buffer()
            assert await callers[number] == PageRuns([(100 + number, 1)])
        assert done == [0, 1, 2, 3]

    play(scenario)


def test_a_guest_that_never_answers() -> None:
    async def scenario(_: InMemoryMachine, guest: MiscGuest, ask: MiscRequests) -> None:
        silence(guest)
        with pytest.raises(RequestTimeout, match=r"not responded within 0\.05 s"):
            await ask.unused_pages(SOON_S)

    play(scenario)


def test_a_late_answer_is_not_that_of_the_next_question() -> None:
    async def scenario(_: InMemoryMachine, guest: MiscGuest, ask: MiscRequests) -> None:
        silence(guest)
        with pytest.raises(RequestTimeout):
            await ask.unused_pages(SOON_S)
        old = await asked(guest)
        waiting = asyncio.create_task(ask.unused_pages(LONG_S))
        await asyncio.sleep(0)
        guest.misc.respond(old, [1])  # the driver was just slow
        guest.misc.respond(old, [2])
        guest.misc.offer_buffer()
        new = await asked(guest)
        assert new.id == old.id + 1
        guest.misc.respond(new, [3])
        assert await waiting == PageRuns([(3, 1)])
        assert guest.board.balloon.misc.late_messages == 2

    play(scenario)


def test_a_guest_that_lost_its_buffer_is_not_asked() -> None:
    """Time-outs one after the other; what was withdrawn never goes out."""

    async def scenario(machine: InMemoryMachine, guest: MiscGuest, ask: MiscRequests) -> None:
        silence(guest)
        for _ in range(3):
            with pytest.raises(RequestTimeout):
                await ask.drop_caches(SOON_S)
        assert await asked(guest) == MiscRequest(DROP_CACHE, 1)
        guest.misc.offer_buffer()
        assert guest.misc.take_requests() == []
        waiting = asyncio.create_task(ask.sync_filesystems(LONG_S))
        question = await asked(guest)
        assert question == MiscRequest(SYNC, 2)
        guest.misc.respond(question)
        await waiting

    play(scenario)


def test_the_wait_for_the_turn_counts() -> None:
    async def scenario(_: InMemoryMachine, guest: MiscGuest, ask: MiscRequests) -> None:
        silence(guest)
        first = asyncio.create_task(ask.unused_pages(LONG_S))
        question = await asked(guest)
        with pytest.raises(RequestTimeout):
            await ask.unused_pages(SOON_S)
        guest.misc.respond(question, [5])
        assert await first == PageRuns([(5, 1)])

    play(scenario)


def test_a_caller_that_goes_away_leaves_nothing_behind() -> None:
    async def scenario(_: InMemoryMachine, guest: MiscGuest, ask: MiscRequests) -> None:
        silence(guest)
        gone = asyncio.create_task(ask.unused_pages(LONG_S))
        old = await asked(guest)
        gone.cancel()
        await asyncio.wait({gone})
        waiting = asyncio.create_task(ask.unused_pages(LONG_S))
        await asyncio.sleep(0)
        guest.misc.respond(old, [1])
        guest.misc.offer_buffer()
        guest.misc.respond(await asked(guest), [2])
        assert await waiting == PageRuns([(2, 1)])

    play(scenario)


# No answer at all.


def test_a_paused_guest_is_not_asked() -> None:
    async def scenario(machine: InMemoryMachine, guest: MiscGuest, ask: MiscRequests) -> None:
        machine.pause()
        with pytest.raises(GuestPaused, match="is paused"):
            await ask.unused_pages(LONG_S)
        assert guest.misc.take_requests() == []
        machine.resume()
        assert (await ask.unused_pages(LONG_S)).pages == len(guest.unused)

    play(scenario)


def test_a_guest_paused_meanwhile() -> None:
    async def scenario(machine: InMemoryMachine, guest: MiscGuest, ask: MiscRequests) -> None:
        waiting = asyncio.create_task(ask.unused_pages(SOON_S))
        await asyncio.sleep(0)
        machine.pause()
        with pytest.raises(GuestPaused):
            await waiting
        assert guest.requests == []
        machine.resume()
        waiting = asyncio.create_task(ask.unused_pages(LONG_S))
        await asyncio.sleep(0)
        machine.pause()
        await asyncio.sleep(SOON_S)
        machine.resume()
        assert (await waiting).pages == len(guest.unused), "in time after all"

    play(scenario)


def test_a_driver_that_takes_no_questions() -> None:
    async def scenario(_: InMemoryMachine, guest: MiscGuest, ask: MiscRequests) -> None:
        guest.driver.reset()
        with pytest.raises(DriverUnavailable, match="MISC_VQ"):
            await ask.unused_pages(LONG_S)
        guest.start(features=ALL_FEATURES & ~MISC_VQ)
        with pytest.raises(DriverUnavailable):
            await ask.unused_pages(LONG_S)
        guest.start()
        assert (await ask.unused_pages(LONG_S)).pages == len(guest.unused)

    play(scenario)


def test_a_driver_that_does_not_know_the_question() -> None:
    async def scenario(_: InMemoryMachine, guest: MiscGuest, ask: MiscRequests) -> None:
        guest.commands = {GET_UNUSED_PAGES}
        for question in (ask.drop_caches, ask.sync_filesystems):
            with pytest.raises(RequestUnsupported, match="does not know"):
                await question(LONG_S)
        assert (await ask.unused_pages(LONG_S)).pages == len(guest.unused)

    play(scenario)


def test_a_driver_that_answers_nonsense() -> None:
    async def scenario(_: InMemoryMachine, guest: MiscGuest, ask: MiscRequests) -> None:
        guest.unused.add(64 * MIB // 4096)
        with pytest.raises(InvalidResponse, match=r"1 of \d+ pages are not RAM"):
            await ask.unused_pages(LONG_S)

    play(scenario)


def test_a_driver_that_is_reset_on_a_vcpu_thread() -> None:
    async def scenario(_: InMemoryMachine, guest: MiscGuest, __: MiscRequests) -> None:
        silence(guest)
        loop, lock = asyncio.get_running_loop(), threading.Lock()

        def soon(callback: Callable[..., None], *args: object) -> None:
            loop.call_soon_threadsafe(callback, *args)

        ask = MiscRequests(guest.board.balloon, lock, soon, lambda: False)
        waiting = asyncio.create_task(ask.unused_pages(LONG_S))
        await asked(guest)

        def vcpu() -> None:
            with lock:
                guest.driver.reset()

        await asyncio.to_thread(vcpu)
        with pytest.raises(GuestReset, match="was reset"):
            await waiting

    play(scenario)


def test_a_guest_that_ends() -> None:
    async def scenario(machine: InMemoryMachine, guest: MiscGuest, ask: MiscRequests) -> None:
        silence(guest)
        callers = [asyncio.create_task(ask.unused_pages(LONG_S)) for _ in range(3)]
        await asked(guest)
        machine.quit()
        for caller in callers:
            with pytest.raises(GuestEnded, match="has ended"):
                await caller
        with pytest.raises(GuestEnded):
            await ask.drop_caches(LONG_S)

    play(scenario)
