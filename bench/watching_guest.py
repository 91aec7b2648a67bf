# SPDX-License-Identifier: Apache-2.0
"""Cost of events, with a Linux guest: bench "watching-guest".

    boot       `pyvmm run` from its start to the first line of user space, with a control socket;
               its events are recorded in a file in memory, or read by a client from the start
    inflate    128 MiB, from the target to the driver's report; three guests in one process take
               turns, whose events no one watches, are recorded, and are read by a client

The client of the boot is this process, and shares the processor. A recording of one boot and one
inflate is measured as well. In the standard dialect an inflate of 128 MiB is 128 requests, in that
of bitmaps one.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

from bench.boot import USER_SPACE
from bench.launch import MEMORY, LaunchedGuest, LaunchedProcess, in_memory
from bench.measure import Case, Contender, Plan, Values, seconds, take_turns
from bench.watchers import RECORDED, UNWATCHED, WATCHED
from guest_images.build import build_image
from pyvmm.boot.image_config import config_for_image
from pyvmm.harness import GuestSession, guest_session
from pyvmm.qmp.client import QmpClient
from pyvmm.qmp.messages import QmpError
from pyvmm.sockets.errors import ControlSocketUnreachable
from pyvmm.trace.recording import Recording
from pyvmm.trace.watch import EventWatch
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES

BOOT_ROUNDS, INFLATE_ROUNDS = 7, 9
LIMIT_S = 75
RAM_MIB, INFLATE_MIB = 512, 128
DIALECTS = ("standard", "bitmap")
_READ_S = 1.0
_CONNECT_S = 0.01


def measure(plan: Plan) -> list[Case]:
    """Measure boots and inflates, and the size of a recording."""
    with (
        in_memory(build_image(progress=plan.progress)) as image,
        tempfile.TemporaryDirectory(dir=MEMORY) as name,
    ):
        directory = Path(name)
        cases = [_boot_case(image, directory, plan)]
        for dialect in DIALECTS[: 1 if plan.quick else None]:
            cases.append(asyncio.run(_inflate_case(image, directory, dialect, plan)))
        return [*cases, *asyncio.run(_size_cases(image, directory))]


# --- Boot -----------------------------------------------------------------------------------
def _boot_case(image: Path, directory: Path, plan: Plan) -> Case:
    guest = LaunchedGuest(image, RAM_MIB, 1)
    socket, recording = directory / "qmp", directory / "boot.rec"
    run = [*guest.pyvmm("-m", "pyvmm"), "--qmp", f"unix:{socket}"]
    contenders: dict[str, Contender] = {
        UNWATCHED: partial(_boot, run),
        RECORDED: partial(_boot, [*run, "--record", str(recording)]),
        WATCHED: partial(_watched_boot, run, socket),
    }
    case = Case(f"boot, {RAM_MIB} MiB", "s", against=UNWATCHED, panel="boot")
    rounds, warm_up = plan.rounds(BOOT_ROUNDS), not plan.quick
    return take_turns(case, contenders, rounds, plan, warm_up=warm_up, limit_s=LIMIT_S)


def _boot(argv: list[str]) -> Values:
    with LaunchedProcess(argv) as process:
        return seconds(process.wait_for(USER_SPACE))


def _watched_boot(argv: list[str], socket: Path) -> Values:
    socket.unlink(missing_ok=True)
    with LaunchedProcess(argv) as process, _watching(socket):
        return seconds(process.wait_for(USER_SPACE))


@contextmanager
def _watching(socket: Path) -> Iterator[None]:
    """Read the events of the VM with the control socket `socket` in another thread."""
    ending, events = threading.Event(), [0]

    def read_all() -> None:
        with _connect(socket, ending) as client, contextlib.suppress(QmpError):
            client.execute("x-trace-start")
            while not ending.is_set():
                events[0] += client.execute("x-trace-read", timeout=_READ_S)["events"]

    reader = threading.Thread(target=read_all)
    reader.start()
    try:
        yield
    finally:
        ending.set()
        reader.join()
    assert events[0]


def _connect(socket: Path, ending: threading.Event) -> QmpClient:
    while not ending.is_set():
        with contextlib.suppress(ControlSocketUnreachable):
            return QmpClient(socket)
        time.sleep(_CONNECT_S)
    raise AssertionError("the VM had no control socket")


# --- Inflate --------------------------------------------------------------------------------
async def _inflate_case(image: Path, directory: Path, dialect: str, plan: Plan) -> Case:
    case = Case(f"inflate of {INFLATE_MIB} MiB, {dialect} dialect", "s", UNWATCHED, panel="inflate")
    rounds = plan.rounds(INFLATE_ROUNDS)
    plan.progress.stage(case.name, rounds)
    async with AsyncExitStack() as stack:
        guests = {
            watcher: await stack.enter_async_context(_guest(image, directory, dialect, watcher))
            for watcher in (UNWATCHED, RECORDED, WATCHED)
        }
        names = list(guests)
        for number in range(-1, rounds):
            first = max(number, 0) % len(names)
            for name in names[first:] + names[:first]:
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
        await guest.expect(USER_SPACE)
        if watcher != WATCHED:
            yield guest
            return
        watch, client = guest.vm.event_watch, object()
        watch.start(client)
        reader = asyncio.create_task(_read_all(watch, client))
        yield guest
        reader.cancel()
        watch.stop(client)


async def _read_all(watch: EventWatch, client: object) -> None:
    while True:
        found = await watch.read(client, _READ_S)
        assert not found.dropped


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
