# SPDX-License-Identifier: Apache-2.0
"""Runnable part of chapter 2: Linux finds a virtio-rng device."""

from __future__ import annotations

from pyvmm.harness import Guest
from pyvmm.learn.stage import Stage
from pyvmm.units import MIB

SHOW_IDS = (
    "cd /sys/bus/virtio/devices;"
    " for each in *; do echo $each: $(cat $each/../vendor $each/../device); done"
)


def run(stage: Stage) -> None:
    """Boot a guest, and show its accesses to the configuration space of the device."""
    with Guest(stage.guest_image, ram_bytes=256 * MIB, rng=0, record=stage.recording) as guest:
        ids = guest.run(["sh", "-c", SHOW_IDS], check=True).stdout
    stage.say("Configuration space, as Linux reads and writes it:")
    stage.show_events(
        ("register_read", "register_write"),
        where=lambda event: event.fields["table"] == "rng.pci_config",
        at_most=40,
    )
    stage.say("\nBARs of all devices:")
    stage.show_events(("bar_placed",))
    stage.say(f"\nVendor and device in the guest, in /sys/bus/virtio/devices:\n{ids.rstrip()}")
