# SPDX-License-Identifier: Apache-2.0
"""Runnable part of chapter 4: Linux reads random bytes through a virtqueue."""

from __future__ import annotations

from pyvmm.harness import Guest
from pyvmm.learn.stage import Stage
from pyvmm.units import MIB

READ_BYTES = 200
SHOWN = ("queue_live", "descriptor", "chain", "used")


def run(stage: Stage) -> None:
    """Boot a guest, read from its entropy device, and show the traffic of the queue."""
    image = stage.guest_image
    with Guest(image, ram_bytes=256 * MIB, rng=0, record=stage.recording) as guest:
        command = f"dd if=/dev/hwrng bs={READ_BYTES} count=1 2>/dev/null | wc -c"
        count = guest.run(["sh", "-c", command], check=True).stdout.strip()
    stage.show_events(SHOWN, device="rng", at_most=16)
    stage.say(f"\nThe guest has read {count} random bytes from /dev/hwrng.")
