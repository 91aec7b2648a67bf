# SPDX-License-Identifier: Apache-2.0
"""Cost of events, with a Linux guest: bench "watching-guest".

    boot       from the creation of the machine to the first line of user space; its events are not
               watched, are recorded in a file in memory, or are read from the first on
    inflate    128 MiB, from the target to the driver's report; three guests, watched in these three
               ways, take turns

The guests run in this process, and it reads their events. The boot is not that of `pyvmm run`: a
client of its control socket arrives when the guest has booted. A recording of one boot and one
inflate is measured as well. In the standard dialect an inflate of 128 MiB is 128 requests, in that
of bitmaps one.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from bench.boot import USER_SPACE
from bench.launch import MEMORY, in_memory
from bench.measure import Case, Plan, dealt, seconds
from bench.watchers import RECORDED, UNWATCHED, WATCHED
from guest_images.build import build_image
from pyvmm.boot.image_config import config_for_image
from pyvmm.harness import GuestSession, guest_session
from pyvmm.trace.recording import Recording
from pyvmm.trace.watch import EventWatch
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES

BOOT_ROUNDS, INFLATE_ROUNDS = 7, 9
RAM_MIB, INFLATE_MIB = 512, 128
DIALECTS = ("standard", "bitmap")
WATCHERS = (UNWATCHED, RECORDED, WATCHED)
_READ_S = 1.0


def measure(plan: Plan) -> list[Case]:
    """Measure boots and inflates, and the size of a recording."""
    with (
        in_memory(build_image(progress=plan.progress)) as image,
        tempfile.TemporaryDirectory(dir=MEMORY) as name,
    ):
        directory = Path(name)
        cases = [asyncio.run(_boot_case(image, directory, plan))]
        for dialect in DIALECTS[: 1 if plan.quick else None]:
            cases.append(asyncio.run(_inflate_case(image, directory, dialect, plan)))
        return [*cases, *asyncio.run(_size_cases(image, directory))]


# --- Boot -----------------------------------------------------------------------------------
async def _boot_case(image: Path, directory: Path, plan: Plan) -> Case:
    case = Case(f"boot, {RAM_MIB} MiB", "s", against=UNWATCHED, panel="boot")
    rounds = plan.rounds(BOOT_ROUNDS)
    plan.progress.stage(case.name, rounds)
    for number in range(-1, rounds):
        for name in dealt(WATCHERS, max(number, 0)):
            begin = time.monotonic()
            async with _guest(image, directory, DIALECTS[0], name):
                elapsed_s = time.monotonic() - begin
            if number >= 0:
                case.add(name, seconds(elapsed_s))
        plan.progress.advance()
    return case


# --- Inflate --------------------------------------------------------------------------------
async def _inflate_case(image: Path, directory: Path, dialect: str, plan: Plan) -> Case:
    case = Case(f"inflate of {INFLATE_MIB} MiB, {dialect} dialect", "s", UNWATCHED, panel="inflate")
    rounds = plan.rounds(INFLATE_ROUNDS)
    plan.progress.stage(case.name, rounds)
    async with AsyncExitStack() as stack:
        guests = {
            watcher: await stack.enter_async_context(_guest(image, directory, dialect, watcher))
            for watcher in WATCHERS
        }
        for number in range(-1, rounds):
            for name in dealt(WATCHERS, max(number, 0)):
                result = await guests[name].resize_balloon(INFLATE_MIB * MIB // PAGE_BYTES)
                await guests[name].resize_balloon(0)
                if number >= 0:
                    case.add(name, seconds(result.seconds))
            plan.progress.advance()
    return case


@asynccontextmanager
async def _guest(
    image: Path, directory: Path, dialect: str, watcher: str
) -> AsyncIterator[GuestSession]:
    config = config_for_image(
        image, run="pattern", append="quiet", ram_bytes=RAM_MIB * MIB, dialect=dialect
    )
    record = directory / f"{dialect}.rec" if watcher == RECORDED else None
    async with guest_session(config, record=record) as guest:
        if watcher != WATCHED:
            await guest.expect(USER_SPACE)
            yield guest
            return
        watch, client = guest.vm.event_watch, object()
        watch.start(client)
        events = [0]
        reader = asyncio.create_task(_read_all(watch, client, events))
        await guest.expect(USER_SPACE)
        yield guest
        reader.cancel()
        watch.stop(client)
        assert events[0]


async def _read_all(watch: EventWatch, client: object, events: list[int]) -> None:
    while True:
        found = await watch.read(client, _READ_S)
        assert not found.dropped
        events[0] += found.events


# --- The size of a recording ----------------------------------------------------------------
async def _size_cases(image: Path, directory: Path) -> list[Case]:
    path = directory / "size.rec"
    config = config_for_image(image, run="pattern", append="quiet", ram_bytes=RAM_MIB * MIB)
    async with guest_session(config, record=path) as guest:
        await guest.expect(USER_SPACE)
        await guest.resize_balloon(INFLATE_MIB * MIB // PAGE_BYTES)
    with Recording(path) as recording:
        assert not recording.dropped
        events, size_bytes = recording.event_count, recording.chunk_bytes
    cases = []
    for name, unit, value in (
        ("events", "events", events),
        ("size", "bytes", size_bytes),
        ("size of an event", "bytes", size_bytes / events),
    ):
        case = Case(f"a boot and an inflate: {name}", unit, RECORDED, plotted=False)
        case.add(RECORDED, seconds(value))
        cases.append(case)
    return cases
