# SPDX-License-Identifier: Apache-2.0
"""Runnable part of chapter 5: the notifications between Linux and an entropy device."""

from __future__ import annotations

from pyvmm.harness import Guest
from pyvmm.learn.stage import Stage
from pyvmm.units import MIB

COMMAND = (
    "dd if=/dev/hwrng of=/dev/null bs=64 count=20 2>/dev/null;"
    " grep virtio /proc/interrupts | grep -v ': *0 '"
)


def run(stage: Stage) -> None:
    """Boot a guest, read from its entropy device, and show the notifications."""
    image = stage.guest_image
    with Guest(image, ram_bytes=256 * MIB, rng=0, record=stage.recording) as guest:
        interrupts = guest.run(["sh", "-c", COMMAND], check=True).stdout
    stage.say("The vectors of the device:")
    stage.show_events(("msix_route",), device="rng")
    stage.say("\nNotifications, and the buffers between them:")
    stage.show_events(
        ("notified", "chain", "used", "used_notification", "interrupt"), device="rng", at_most=20
    )
    stage.say("\nInterrupts that the guest has counted, those of other virtio devices included:")
    stage.say(interrupts.rstrip())
