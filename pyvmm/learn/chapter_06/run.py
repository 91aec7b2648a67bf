# SPDX-License-Identifier: Apache-2.0
"""Runnable part of chapter 6: the notifications of a balloon that inflates."""

from __future__ import annotations

from collections import Counter

from pyvmm.harness import Guest
from pyvmm.learn.stage import Stage
from pyvmm.trace.recording import Recording
from pyvmm.units import MIB

INFLATE_PAGES = 32768
SHOWN = ("notified", "avail_notifications", "chain", "used", "used_notification", "interrupt")


def run(stage: Stage) -> None:
    """Boot a guest, inflate its balloon, and show and count the notifications."""
    image = stage.guest_image
    with Guest(image, ram_bytes=256 * MIB, dialect="standard", record=stage.recording) as guest:
        guest.resize_balloon(INFLATE_PAGES)
    stage.show_events(SHOWN, device="balloon", queue="inflate", at_most=18)
    counts: Counter[str] = Counter()
    with Recording(stage.recording) as recording:
        for event in recording.events():
            if event.device == "balloon" and event.queue == "inflate":
                counts[event.kind] += 1
                counts["sent"] += event.kind == "used_notification" and bool(event.fields["sent"])
    stage.say(
        f"\nThe device has returned {counts['used']} buffers, and decided"
        f" {counts['used_notification']} times whether to interrupt: {counts['sent']} interrupts."
    )
