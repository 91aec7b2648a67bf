# SPDX-License-Identifier: Apache-2.0
"""Runnable part of chapter 8: a Linux guest inflates and deflates by page frame number arrays."""

from __future__ import annotations

from pyvmm.harness import Guest
from pyvmm.learn.stage import Stage
from pyvmm.units import MIB

LARGE_PAGES, SMALL_PAGES = 16384, 8192


def run(stage: Stage) -> None:
    """Boot a guest, inflate its balloon and deflate it by half; print its requests."""
    with Guest(
        stage.guest_image, ram_bytes=256 * MIB, dialect="standard", record=stage.recording
    ) as guest:
        for target_pages in (LARGE_PAGES, SMALL_PAGES):
            result = guest.resize_balloon(target_pages)
            stage.say(f"A balloon of {target_pages} pages took {result.requests} requests.")
    stage.say()
    stage.show_events(("target", "inflate", "actual"), device="balloon", at_most=8)
    stage.say()
    stage.show_events(("deflate",), device="balloon", at_most=3)
