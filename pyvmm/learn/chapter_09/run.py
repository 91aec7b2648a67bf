# SPDX-License-Identifier: Apache-2.0
"""Runnable part of chapter 9: the requests of one inflate in two protocols."""

from __future__ import annotations

from pyvmm.harness import Guest
from pyvmm.learn.stage import Stage
from pyvmm.units import MIB

BALLOON_PAGES = 16384


def run(stage: Stage) -> None:
    """Inflate the balloon of one guest for each protocol, and print the second one's requests."""
    for dialect in ("standard", "bitmap"):
        record = stage.recording if dialect == "bitmap" else None
        with Guest(stage.guest_image, ram_bytes=256 * MIB, dialect=dialect, record=record) as guest:
            result = guest.resize_balloon(BALLOON_PAGES)
        plural = "" if result.requests == 1 else "s"
        stage.say(f"{dialect:<8} {result.pages} pages in {result.requests} request{plural}")
    stage.say()
    stage.show_events(("chain", "inflate"), device="balloon", queue="inflate", at_most=6)
    stage.show_events(("inflate",), device="balloon", at_most=6)
