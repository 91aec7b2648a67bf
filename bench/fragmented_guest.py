# SPDX-License-Identifier: Apache-2.0
"""A guest whose free memory is in small pieces: the program `bench/c/fragment.c` inside it.

The program is in an archive that is added to the guest's initramfs. It holds half of the guest's
memory, in every second run of frames, so that the other half is free in runs of that length; the
kernel's own list of free blocks (/proc/buddyinfo) must agree. It also prints the driver's counters.
"""

from __future__ import annotations

import asyncio
from typing import Any

from bench.native import static_program
from pyvmm.boot.overlay import PutPath, put_archive
from pyvmm.harness.console_guest import ConsoleGuest

PROGRAM = "/bin/fragment"
OUTPUT = "/tmp/fragment"
READ_COUNTERS = f"sleep 0.1; tail -n 1 {OUTPUT}"
"""Shell command that prints the counters as they were when the balloon was inflated."""
POLL_S = 0.2
FREE_SHARE = 0.6
"""Least share of free memory in blocks of the length; the rest is the kernel's reserve."""


def fragment_overlay(ram_bytes: int) -> bytes:
    """Return the archive with the program, for a guest of `ram_bytes`."""
    return put_archive([PutPath(static_program("fragment"), PROGRAM)], ram_bytes)


async def fragment_memory(guest: ConsoleGuest[Any], run_pages: int) -> None:
    """Leave the guest's free memory in runs of `run_pages` pages, a power of two."""
    await guest.shell(
        "cd /proc/sys/vm; echo 0 >compaction_proactiveness; echo 0 >compact_unevictable_allowed"
    )
    await guest.shell(f"mkdir -p /tmp; {PROGRAM} {run_pages} >{OUTPUT} 2>&1 &")
    while not (said := await guest.shell(f"cat {OUTPUT}")):
        await asyncio.sleep(POLL_S)
    assert said.startswith("free "), said
    share = share_in_blocks(await guest.shell("cat /proc/buddyinfo"), run_pages)
    assert share >= FREE_SHARE, f"{share:.0%} of the free memory is in runs of {run_pages} pages"


def share_in_blocks(buddyinfo: str, pages: int) -> float:
    """Return the share of free pages that is in blocks of `pages` pages, in all zones."""
    wanted = total = 0
    for line in buddyinfo.splitlines():
        for order, blocks in enumerate(line.partition("zone")[2].split()[1:]):
            total += int(blocks) << order
            wanted += int(blocks) << order if 1 << order == pages else 0
    return wanted / total
