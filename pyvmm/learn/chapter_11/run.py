# SPDX-License-Identifier: Apache-2.0
"""Runnable part of chapter 11: hints and reports of a Linux guest."""

from __future__ import annotations

import asyncio

from pyvmm.harness import Guest
from pyvmm.harness.guest_session import GuestSession
from pyvmm.learn.stage import Stage
from pyvmm.memory.rss import resident_bytes
from pyvmm.units import MIB, format_size
from pyvmm_native import PAGE_BYTES

FILL_AND_FREE = "dd if=/dev/urandom of=/tmp/data bs=1M count=96 2>/dev/null; rm /tmp/data"
REPORT_WAIT_S = 4.0
"""Linux reports free memory about two seconds after it was freed."""


def run(stage: Stage) -> None:
    """Boot a guest, ask for hints, and wait for its reports."""
    with Guest(
        stage.guest_image,
        ram_bytes=256 * MIB,
        dialect="standard",
        offer=["free-page-hint", "reporting"],
        record=stage.recording,
    ) as guest:
        guest.run(["sh", "-c", FILL_AND_FREE], check=True)
        guest.call(_watch(stage, guest.session))
    stage.say()
    stage.show_events(("hints", "report"), device="balloon", at_most=6)


async def _watch(stage: Stage, guest: GuestSession) -> None:
    """Print what the host learns from hints and from reports, and what it frees."""
    _say_resident(stage, "the guest has freed 96 MiB")
    async with guest.vm.free_page_hints.held() as hints:
        hinted = format_size(hints.pages.pages * PAGE_BYTES)
        _say_resident(stage, f"hints name {hinted}")
    await asyncio.sleep(REPORT_WAIT_S)
    reported = format_size(guest.vm.balloon.counters.reported_pages * PAGE_BYTES)
    _say_resident(stage, f"reports name {reported}")


def _say_resident(stage: Stage, event: str) -> None:
    stage.say(f"{event:<28} resident memory of the monitor: {format_size(resident_bytes())}")
