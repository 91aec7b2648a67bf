# SPDX-License-Identifier: Apache-2.0
"""Runnable part of chapter 10: the host asks a Linux guest for its unused pages, twice."""

from __future__ import annotations

from pyvmm.harness import Guest
from pyvmm.learn.stage import Stage
from pyvmm.units import MIB, format_size
from pyvmm_native import PAGE_BYTES

FILL = "dd if=/dev/urandom of=/tmp/data bs=1M count=64 2>/dev/null"


def run(stage: Stage) -> None:
    """Boot a guest, and ask for its unused pages before and after it has filled a file in RAM."""
    image = stage.guest_image
    with Guest(image, ram_bytes=256 * MIB, dialect="bitmap", record=stage.recording) as guest:
        for when in ("before", "after"):
            pages = guest.call(guest.session.vm.misc_requests.unused_pages())
            size = format_size(pages.pages * PAGE_BYTES)
            stage.say(f"{when:<6} {pages.pages} unused pages, {size}, in {len(pages)} runs")
            if when == "before":
                guest.run(["sh", "-c", FILL], check=True)
    stage.say()
    stage.show_events(("chain", "used"), device="balloon", queue="queue 3", at_most=12)
    stage.show_events(("misc",), device="balloon")
