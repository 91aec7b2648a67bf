# SPDX-License-Identifier: Apache-2.0
"""Runnable part of chapter 3: the drivers of Linux initialise two devices."""

from __future__ import annotations

from pyvmm.harness import Guest
from pyvmm.learn.stage import Stage
from pyvmm.units import MIB

SHOWN = ("status", "features", "features_refused", "queue_live")
LEFT_OUT = ("device", "before", "offered", "accepted")


def run(stage: Stage) -> None:
    """Boot a guest, and show how its drivers negotiate."""
    image = stage.guest_image
    with Guest(image, ram_bytes=256 * MIB, rng=0, record=stage.recording) as guest:
        bits = guest.run(["sh", "-c", "cat /sys/bus/virtio/devices/*/features"], check=True).stdout
    for device in ("rng", "balloon"):
        stage.say(f"{device}:")
        stage.show_events(SHOWN, device=device, without=LEFT_OUT)
    stage.say("\nThe same in the guest: accepted features in /sys/bus/virtio/devices, bit 0 first:")
    stage.say(bits.rstrip())
