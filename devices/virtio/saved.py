# SPDX-License-Identifier: Apache-2.0
"""The saved state of a virtio device, independent of its type and transport.

`save_device` saves the state of `VirtioDevice` and that of the device type; `check_device` reads it
back. Status and features must obey the rules for a driver's writes, so a device cannot be restored
to a state that no driver could have reached. Rings and buffers are in guest RAM and are saved with
it. Of a buffer in flight, the head and the writable segments are saved, and are not read from the
ring again: the checked copy stays valid even if the driver has changed its descriptors since.

Notifications in either direction may have been pending when the state was saved. So a restored
transport serves each live queue once, and `repeat_notifications` interrupts the driver once for
each queue and for the configuration space. A spurious notification is harmless; a lost one can
hang a driver.
"""

from __future__ import annotations

from devices.state import Fields, Payload, Restore
from devices.virtio import features
from devices.virtio.device import SavedDevice, VirtioDevice
from devices.virtio.queue import DeviceQueue
from devices.virtio.status import Status, is_possible, is_running


def save_device(device: VirtioDevice) -> Payload:
    """Return all state of `device` that is not its transport's."""
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
    """Check all of the state; return the function that applies it to `device`."""
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
            raise part.error("indices", "are present before DRIVER_OK")
        if queue.ring is None and queue.enabled and is_running(status):
            raise part.error("indices", "are missing from a live queue")
    return queues
