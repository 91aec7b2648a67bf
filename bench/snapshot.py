# SPDX-License-Identifier: Apache-2.0
"""An idle guest is written to a file: with and without the pages that it does not use.

A guest of each VMM uses nearly all of its RAM and frees it again; then it is saved into a file in
memory, and goes on. QEMU 7.2 saves a machine by moving it into a command (`migrate exec:`), so its
file is what a migration sends. The same guest of ours is saved twice: asked which pages it does not
use, and not asked. The time is that from the command until it is said to be completed, looked at
every `POLL_S` seconds; how long the guest stands still is what each VMM says.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Any

from bench.measure import TOTAL, Case, Plan
from bench.movers import (
    ASKED,
    HINTING,
    NOT_ASKED,
    QEMU,
    QEMU_HINTED,
    QUICK_SIZE,
    SEED,
    THOROUGH_SIZE,
    VERIFIED,
    Boot,
    Mover,
    Size,
    again_in_the_lab,
    in_memory,
    moved,
    pyvmm_boot,
    qemu_boot,
)
from pyvmm.harness.console_guest import POLL_S
from pyvmm.harness.errors import GuestExited
from pyvmm.units import MIB

Saved = tuple[float, float, float]
"""Seconds, MiB of the file, milliseconds the guest stood still."""


def measure(plan: Plan) -> list[Case]:
    """One size of guest; quickly with one of QEMU's only."""
    size = QUICK_SIZE if plan.quick else THOROUGH_SIZE
    cases = new_cases()
    peers: dict[str, Boot] = {QEMU: qemu_boot()}
    if not plan.quick:
        peers[QEMU_HINTED] = qemu_boot(*HINTING)
    plan.progress.stage(cases[0].name, 1 + len(peers))
    turns = {"pyvmm": partial(_ours, size)}
    turns |= {name: partial(_peers, name, peers[name], size) for name in peers}
    for turn, work in turns.items():
        for name, saved in plan.kept.turn(turn, partial(again_in_the_lab, work)).items():
            for case, value in zip(cases, saved, strict=True):
                case.add(name, {TOTAL: value})
        plan.progress.advance()
    return cases


def new_cases() -> list[Case]:
    """In the order of `Saved`."""
    return [
        Case("time to save", "s", against=QEMU),
        Case("size of the file", "MiB", against=QEMU),
        Case("the guest stands still", "ms", against=QEMU),
    ]


async def _ours(size: Size) -> dict[str, Saved]:
    async with pyvmm_boot("bitmap")(size) as mover, in_memory() as directory:
        return {
            name: await _saved(mover, directory / "guest.snapshot", unused)
            for name, unused in ((ASKED, True), (NOT_ASKED, False))
        }


async def _saved(mover: Mover, path: Path, unused: bool) -> Saved:
    begin = time.monotonic()
    await mover.qmp("snapshot-to-file", path=str(path), unused=unused)
    answer: dict[str, Any]
    while (answer := await mover.qmp("query-snapshot"))["status"] != "completed":
        if answer["status"] == "failed":
            raise GuestExited(f"it was not saved: {answer['error-desc']}")
        await asyncio.sleep(POLL_S)
    seconds = time.monotonic() - begin
    return await _checked(mover, path, seconds, answer["stopped-seconds"] * 1000)


async def _peers(name: str, boot: Boot, size: Size) -> dict[str, Saved]:
    async with boot(size) as mover, in_memory() as directory:
        path = directory / "guest.state"
        seconds, answer = await moved(mover, f"exec:cat > {path}")
        await mover.qmp("cont")
        return {name: await _checked(mover, path, seconds, answer["downtime"])}


async def _checked(mover: Mover, path: Path, seconds: float, still_ms: float) -> Saved:
    """Measure the file, which is not needed any more; the guest has to go on as it was."""
    saved = seconds, path.stat().st_size / MIB, still_ms
    path.unlink()
    assert await mover.guest.command(f"verify {SEED}") == VERIFIED
    return saved
