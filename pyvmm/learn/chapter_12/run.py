# SPDX-License-Identifier: Apache-2.0
"""Runnable part of chapter 12: copy the memory of a running guest in rounds, by KVM's dirty log."""

from __future__ import annotations

import asyncio

from pyvmm.balloon.guest_requests import DEFAULT_TIMEOUT_S
from pyvmm.harness import Guest
from pyvmm.harness.guest_session import GuestSession
from pyvmm.learn.stage import Stage
from pyvmm.memory.precopy import NOT_QUERIED, Chunk, PreCopy
from pyvmm.units import MIB, format_size
from pyvmm_native import PAGE_BYTES

FILL_AND_FREE = "dd if=/dev/urandom of=/tmp/free bs=1M count=64 2>/dev/null; rm /tmp/free"
WRITER = "while :; do dd if=/dev/urandom of=/tmp/data bs=1M count=4 2>/dev/null; done"
ROUNDS = 3
"""Rounds while the guest runs."""
ROUND_S = 0.3
"""Time in which the guest writes between two rounds."""


def run(stage: Stage) -> None:
    """Boot a guest that writes to memory, and copy it, all pages first and then without unused."""
    with Guest(stage.guest_image, ram_bytes=256 * MIB, record=stage.recording) as guest:
        guest.call(_copy_both_ways(stage, guest.session))


async def _copy_both_ways(stage: Stage, guest: GuestSession) -> None:
    await guest.run(["sh", "-c", FILL_AND_FREE], check=True)
    writer = asyncio.create_task(guest.run(["sh", "-c", WRITER]))
    await asyncio.sleep(ROUND_S)
    for ask in (False, True):
        stage.say("without unused pages:" if ask else "all pages:")
        await _copy(stage, guest, ask=ask)
    writer.cancel()


async def _copy(stage: Stage, guest: GuestSession, *, ask: bool) -> None:
    """Copy the guest's memory to nowhere; print the pages of each round."""
    with guest.vm.log_dirty_pages() as log:
        unused = await guest.vm.unused_pages(DEFAULT_TIMEOUT_S) if ask else NOT_QUERIED
        precopy = PreCopy(guest.vm.ram.memory, log, unused)
        for number in range(1, ROUNDS + 1):
            _round(stage, precopy, f"round {number}")
            await asyncio.sleep(ROUND_S)
            precopy.collect()
        guest.vm.pause()
        precopy.collect()
        _round(stage, precopy, "paused")
        guest.vm.resume()


def _round(stage: Stage, precopy: PreCopy, name: str) -> None:
    """Copy the pages of one round, and print what they are."""
    sent: list[int] = []

    def sink(chunk: Chunk) -> None:
        sent.append(chunk.nonzero.pages)

    todo = precopy.todo.pages
    precopy.copy(sink)
    size = format_size(sum(sent) * PAGE_BYTES)
    stage.say(f"  {name}: {todo:6} pages to copy, {size} of them not zeros")
