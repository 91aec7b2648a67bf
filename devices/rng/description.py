# SPDX-License-Identifier: Apache-2.0
"""The buffers of virtio-rng, described for people (VIRTIO 1.2, section 5.4.6)."""

from __future__ import annotations

from devices.virtio.description import BufferBytes, Described


def describe(buffer: BufferBytes) -> list[Described]:
    """As `devices.virtio.description.Describe`."""
    length = len(buffer.writable)
    if not length:
        return []
    value = f"{length} bytes, for the device to fill"
    return [Described("writable", 0, length, "random bytes", value, "VIRTIO 1.2, 5.4.6")]
