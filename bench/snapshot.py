# SPDX-License-Identifier: Apache-2.0
"""Snapshots of an idle guest to a file, with and without the pages that it does not use.

A guest of each VMM uses nearly all of its RAM and frees it again; then it is saved to a file in
memory, and resumes. QEMU 7.2 saves a machine by migrating it into a command (`migrate exec:`), so
its file is a migration stream. The same guest of pyvmm is saved twice: with the query of unused
pages and without it, each of them first in every other round. The time is from the command until
completion is reported, polled every `POLL_S` seconds; the downtime is the one each VMM reports.
Guests have 1 GiB and `ENOUGH_ROUNDS` rounds; those of 8 GiB, in a benchmark of their own, have one.
The lab's memory is touched before (`bench.lab_memory`).
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from bench.lab_memory import touch_lab_memory
from bench.measure import ENOUGH_ROUNDS, TOTAL, Case, Plan, dealt
from bench.migratable_guests import (
    FULL_SIZE,
    LARGE_SIZE,
    PATTERN_SEED,
    QEMU,
    QEMU_HINTS,
    QEMU_HINTS_DEVICE,
    QUERY_DISABLED,
    QUICK_SIZE,
    VERIFIED,
    WITH_QUERY,
    Boot,
    MigratableGuest,
    Size,
    in_memory,
    migrate,
    pyvmm_boot,
    qemu_boot,
    retry_in_lab,
)
from bench.peers import BASELINE
from pyvmm.harness.console_guest import POLL_S
from pyvmm.harness.errors import GuestExited
from pyvmm.units import MIB

PYVMM = "pyvmm"
"""The turn of the guest that is saved twice."""
Saved = tuple[float, float, float]
"""Seconds, MiB of the file, milliseconds of downtime."""


def measure(plan: Plan) -> list[Case]:
    """Measure guests of 1 GiB; a quick run has small ones, and only one of QEMU's."""
    return _measure(plan, QUICK_SIZE if plan.quick else FULL_SIZE, ENOUGH_ROUNDS)


def measure_large(plan: Plan) -> list[Case]:
    """Measure one guest of 8 GiB of each contender."""
    return _measure(plan, QUICK_SIZE if plan.quick else LARGE_SIZE, 1)


def _measure(plan: Plan, size: Size, full_rounds: int) -> list[Case]:
    cases, rounds, boots = new_cases(), plan.rounds(full_rounds), _qemu_boots(plan)
    names = [PYVMM, *boots]
    plan.progress.stage(cases[0].name, rounds * len(names))
    if not plan.quick:
        touch_lab_memory()
    for number in range(rounds):
        for turn in dealt(names, number):
            if turn == PYVMM:
                work = partial(_pyvmm, size, query_first=number % 2 == 0)
            else:
                work = partial(_qemu, turn, boots[turn], size)
            for name, saved in plan.checkpoint.turn(turn, partial(retry_in_lab, work)).items():
                for case, value in zip(cases, saved, strict=True):
                    case.add(name, {TOTAL: value})
            plan.progress.advance()
    return cases


def _qemu_boots(plan: Plan) -> dict[str, Boot]:
    """Return the guests of QEMU's, those of further QEMUs included, by contender."""
    balloons: dict[str, tuple[str, ...]] = {QEMU: ()}
    if not plan.quick:
        balloons[QEMU_HINTS] = QEMU_HINTS_DEVICE
    boots = {name: qemu_boot(*balloon) for name, balloon in balloons.items()}
    for peer, (name, balloon) in product(plan.peers, balloons.items()):
        boots[name.replace(BASELINE, peer.name)] = qemu_boot(*balloon, peer=peer)
    return boots


def new_cases() -> list[Case]:
    """Return empty cases in the order of `Saved`."""
    return [
        Case("snapshot time", "s", against=QEMU),
        Case("file size", "MiB", against=QEMU),
        Case("snapshot downtime", "ms", against=QEMU),
    ]


async def _pyvmm(size: Size, *, query_first: bool) -> dict[str, Saved]:
    async with pyvmm_boot("bitmap")(size) as guest, in_memory() as directory:
        contenders = [(WITH_QUERY, True), (QUERY_DISABLED, False)]
        return {
            name: await _saved(guest, directory / "guest.snapshot", unused)
            for name, unused in (contenders if query_first else reversed(contenders))
        }


async def _saved(guest: MigratableGuest, path: Path, unused: bool) -> Saved:
    begin = time.monotonic()
    await guest.qmp("snapshot-to-file", path=str(path), unused=unused)
    answer: dict[str, Any]
    while (answer := await guest.qmp("query-snapshot"))["status"] != "completed":
        if answer["status"] == "failed":
            raise GuestExited(f"the snapshot failed: {answer['error-desc']}")
        await asyncio.sleep(POLL_S)
    seconds = time.monotonic() - begin
    return await _checked(guest, path, seconds, answer["stopped-seconds"] * 1000)


async def _qemu(name: str, boot: Boot, size: Size) -> dict[str, Saved]:
    async with boot(size) as guest, in_memory() as directory:
        path = directory / "guest.state"
        seconds, answer = await migrate(guest, f"exec:cat > {path}")
        await guest.qmp("cont")
        return {name: await _checked(guest, path, seconds, answer["downtime"])}


async def _checked(guest: MigratableGuest, path: Path, seconds: float, downtime_ms: float) -> Saved:
    """Return the result, and remove the file; the guest must still run, its memory unchanged."""
    saved = seconds, path.stat().st_size / MIB, downtime_ms
    path.unlink()
    assert await guest.guest.command(f"verify {PATTERN_SEED}") == VERIFIED
    return saved
