# SPDX-License-Identifier: Apache-2.0
"""Runnable part of chapter 2: Linux finds a virtio-rng device."""

from __future__ import annotations

from pyvmm.harness import Guest
from pyvmm.learn.stage import Stage
from pyvmm.units import MIB


def run(stage: Stage) -> None:
    """Boot a guest, and show its accesses to the configuration space of the device."""
    with Guest(stage.guest_image, ram_bytes=256 * MIB, rng=0, record=stage.recording) as guest:
        files = "/sys/bus/virtio/devices/*/../"
        lines = guest.run(["sh", "-c", f"head {files}vendor {files}device"], check=True).stdout
    stage.say("Configuration space, as Linux reads and writes it:")
    stage.show_events(where=lambda event: event.fields.get("table") == "rng.pci_config", at_most=24)
    stage.say("\nBARs of all devices:")
    stage.show_events(("bar_placed",))
    stage.say(f"\nThe same ids in the guest, in /sys/bus/virtio/devices:\n{lines.rstrip()}")
