# SPDX-License-Identifier: Apache-2.0
"""A virtio device's saved state, whatever its type and however it is attached.

`save_device` writes down what `VirtioDevice` holds, and asks the device type for the rest.
`check_device` reads that back. Status and features go through the rules that a driver's writes go
through, so a device cannot be restored to a state that no driver could have brought it to. Rings
and buffers themselves lie in guest RAM and are saved with it. Of a buffer that the device keeps,
head and writable segments are saved, not read from the ring anew: what was copied and checked once
stays true, whatever the driver has done to its descriptors since.

Notifications may have been on their way, in either direction, while the state was saved. So a
restored transport has every live queue looked at once, and `repeat_notifications` interrupts the
driver once for every queue and for the configuration space. A notification too many is harmless,
one too few can stop a driver for good.
"""

from __future__ import annotations

from devices.state import Fields, Payload, Restore
from devices.virtio import features
from devices.virtio.device import SavedDevice, VirtioDevice
from devices.virtio.queue import DeviceQueue
from devices.virtio.status import Status, is_possible, is_running


def save_device(device: VirtioDevice) -> Payload:
    """All state of `device` that is not its transport's."""
    return {
        **device.compatibility_key(),
        "offered": device.offered,
        "accepted": device.accepted,
        "status": int(device.status),
        "generation": device.config_generation,
        "config_notifications": device.config_notifications,
        "config": device.config.save_state(),
        "queues": [queue.save_state() for queue in device.queues],
        "own": device.save_own_state(),
    }


def check_device(device: VirtioDevice, state: Fields) -> Restore:
    """Check everything; what is restored keeps its transport."""
    saved = _check_common(device, state)
    restore_config = device.config.check_state(state.part("config"))
    restore_own = device.check_own_state(state.part("own"), saved)
    return lambda: device.apply_state(saved, restore_config, restore_own)


def _check_common(device: VirtioDevice, state: Fields) -> SavedDevice:
    for name, here in device.compatibility_key().items():
        state.same(name, here)
    offered, accepted = state.number("offered"), state.number("accepted")
    if offered != device.offered:
        there, here = (
            features.names(mask, device.feature_names) for mask in (offered, device.offered)
        )
        raise state.error("offered", f"is {there} in the saved state and {here} here")
    status = state.number("status", below=1 << 8)
    if not is_possible(status):
        raise state.error("status", f"cannot be {status:#x}")
    if status & Status.FEATURES_OK and (why := device.feature_refusal(accepted)):
        raise state.error("accepted", f"cannot be {accepted:#x}: {why}")
    return SavedDevice(
        Status(status),
        accepted,
        _check_queues(device, state, Status(status), accepted),
        state.number("generation", below=1 << 8),
        state.counter("config_notifications"),
    )


def _check_queues(
    device: VirtioDevice, state: Fields, status: Status, accepted: int
) -> tuple[DeviceQueue, ...]:
    parts = state.parts("queues", count=len(device.queues))
    queues = tuple(
        DeviceQueue.from_state(queue.index, queue.spec, part, device.memory, accepted)
        for queue, part in zip(device.queues, parts, strict=True)
    )
    for queue, part in zip(queues, parts, strict=True):
        if queue.ring is not None and not status & Status.DRIVER_OK:
            raise part.error("indices", "are there before DRIVER_OK")
        if queue.ring is None and queue.enabled and is_running(status):
            raise part.error("indices", "are missing from a live queue")
    return queues
