# SPDX-License-Identifier: Apache-2.0
"""A guest whose free memory is in small pieces: the program `bench/c/fragment.c` inside it.

The program is in an archive that is added to the guest's initramfs. It holds half of the guest's
memory, in every second run of frames, so that the other half is free in runs of that length; the
kernel's own list of free blocks (/proc/buddyinfo) must agree. It also prints the driver's counters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from bench.balloon_guests import (
    ENCODER_PEAK,
    MEMORY,
    BalloonGuest,
    ResizeCosts,
    parse_counters,
    reset_counters,
)
from bench.native import static_program
from pyvmm.boot.overlay import PutPath, put_archive
from pyvmm.harness.console_guest import ConsoleGuest

PROGRAM = "/bin/fragment"
OUTPUT = "/tmp/fragment"
POLL_S = 0.2
FREE_SHARE = 0.6
"""Least share of free memory in blocks of the length; the rest is the kernel's reserve."""
SETTLE_S = 1
"""Seconds in which the kernel ends what the start of processes has made it do."""


def fragment_overlay(ram_bytes: int) -> bytes:
    """Return the archive with the program, for a guest of `ram_bytes`."""
    return put_archive([PutPath(static_program("fragment"), PROGRAM)], ram_bytes)


async def fragment_memory(guest: ConsoleGuest[Any], run_pages: int) -> None:
    """Leave the guest's free memory in runs of `run_pages` pages, a power of two."""
    await guest.shell(
        "cd /proc/sys/vm; echo 0 >compaction_proactiveness; echo 0 >compact_unevictable_allowed"
    )
    program = f"{{ {PROGRAM} {run_pages} || echo status $?; }}"
    await guest.shell(f"mkdir -p /tmp; {program} >{OUTPUT} 2>&1 &")
    while not (output := await guest.shell(f"cat {OUTPUT}")):
        await asyncio.sleep(POLL_S)
    assert output.startswith("free "), output
    share = share_in_blocks(await guest.shell("cat /proc/buddyinfo"), run_pages)
    assert share >= FREE_SHARE, f"{share:.0%} of the free memory is in runs of {run_pages} pages"


async def resize_fragmented(guest: BalloonGuest, pages: int) -> dict[str, ResizeCosts]:
    """Inflate by `pages` and deflate; the costs by direction. No process is started meanwhile."""
    for direction in MEMORY:
        await reset_counters(guest, direction)
    await guest.guest.shell(f"sleep {SETTLE_S}")
    resizes = {
        direction: await guest.resize(pages * (direction == "inflate")) for direction in MEMORY
    }
    await asyncio.sleep(POLL_S)  # the program has printed the last line
    lines = (await guest.guest.shell(f"cat {OUTPUT}")).splitlines()
    return {
        direction: ResizeCosts(direction, seconds, last_counters(direction, lines), device)
        for direction, (seconds, device) in resizes.items()
    }


def last_counters(direction: str, lines: Sequence[str]) -> dict[str, int]:
    """Return the counters of the last of the program's lines, with the highest of all peaks."""
    found = [parse_counters(direction, line) for line in lines if line.startswith(direction)]
    return {**found[-1], ENCODER_PEAK: max(each[ENCODER_PEAK] for each in found)}


def share_in_blocks(buddyinfo: str, pages: int) -> float:
    """Return the share of free pages that is in blocks of `pages` pages, in all zones."""
    wanted = total = 0
    for line in buddyinfo.splitlines():
        for order, blocks in enumerate(line.partition("zone")[2].split()[1:]):
            total += int(blocks) << order
            wanted += int(blocks) << order if 1 << order == pages else 0
    return wanted / total
