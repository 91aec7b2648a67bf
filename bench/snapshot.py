# SPDX-License-Identifier: Apache-2.0
"""Snapshots of an idle guest to a file, with and without the pages that it does not use.

A guest of each VMM uses nearly all of its RAM and frees it again; then it is saved to a file in
memory, and resumes. QEMU 7.2 saves a machine by migrating it into a command (`migrate exec:`), so
its file is a migration stream. The same guest of pyvmm is saved twice: with the query of unused
pages enabled and disabled. The time is from the command until completion is reported, polled every
`POLL_S` seconds; the downtime is the one each VMM reports.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Any

from bench.measure import TOTAL, Case, Plan
from bench.migratable_guests import (
    FULL_SIZE,
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
from pyvmm.harness.console_guest import POLL_S
from pyvmm.harness.errors import GuestExited
from pyvmm.units import MIB

Saved = tuple[float, float, float]
"""Seconds, MiB of the file, milliseconds of downtime."""


def measure(plan: Plan) -> list[Case]:
    """Measure guests of one size; a quick run has only one guest of QEMU's."""
    size = QUICK_SIZE if plan.quick else FULL_SIZE
    cases = new_cases()
    peers: dict[str, Boot] = {QEMU: qemu_boot()}
    if not plan.quick:
        peers[QEMU_HINTS] = qemu_boot(*QEMU_HINTS_DEVICE)
    plan.progress.stage(cases[0].name, 1 + len(peers))
    turns = {"pyvmm": partial(_pyvmm, size)}
    turns |= {name: partial(_qemu, name, peers[name], size) for name in peers}
    for turn, work in turns.items():
        for name, saved in plan.checkpoint.turn(turn, partial(retry_in_lab, work)).items():
            for case, value in zip(cases, saved, strict=True):
                case.add(name, {TOTAL: value})
        plan.progress.advance()
    return cases


def new_cases() -> list[Case]:
    """Return empty cases in the order of `Saved`."""
    return [
        Case("snapshot time", "s", against=QEMU),
        Case("file size", "MiB", against=QEMU),
        Case("snapshot downtime", "ms", against=QEMU),
    ]


async def _pyvmm(size: Size) -> dict[str, Saved]:
    async with pyvmm_boot("bitmap")(size) as guest, in_memory() as directory:
        return {
            name: await _saved(guest, directory / "guest.snapshot", unused)
            for name, unused in ((WITH_QUERY, True), (QUERY_DISABLED, False))
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
