# SPDX-License-Identifier: Apache-2.0
"""Commands on the virtio devices and their queues, as in QEMU's virtio.json.

They read the state that the framework keeps for a device of any type (`devices.virtio`), and the
rings in guest memory, under the device lock; nothing changes by it. A path is that of a device in
QEMU's object model, for example `/machine/peripheral/balloon0/virtio-backend`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from devices.virtio import features
from devices.virtio.inspection import (
    INDIRECT,
    NEXT,
    WRITE,
    Descriptor,
    QueueContents,
    inspect_queue,
)
from devices.virtio.status import Status
from pyvmm.qmp.command import Command, Parameter
from pyvmm.qmp.messages import QmpError
from pyvmm_native.memory import GuestAddressError

if TYPE_CHECKING:
    from devices.virtio.device import VirtioDevice
    from devices.virtio.pci_transport import VirtioPciTransport
    from devices.virtio.queue import DeviceQueue
    from pyvmm.qmp.vm_control import VmControl

VRING_ALIGN = 4096
"""Alignment of a ring in the legacy interface, which QEMU reports for every device."""
QEMU_NAMES = {"console": "virtio-serial"}
"""Devices that QEMU calls otherwise than `virtio-` and our name."""
STATUS_NAMES = {
    Status.ACKNOWLEDGE: "VIRTIO_CONFIG_S_ACKNOWLEDGE",
    Status.DRIVER: "VIRTIO_CONFIG_S_DRIVER",
    Status.DRIVER_OK: "VIRTIO_CONFIG_S_DRIVER_OK",
    Status.FEATURES_OK: "VIRTIO_CONFIG_S_FEATURES_OK",
    Status.DEVICE_NEEDS_RESET: "VIRTIO_CONFIG_S_NEEDS_RESET",
    Status.FAILED: "VIRTIO_CONFIG_S_FAILED",
}
TRANSPORT_NAMES = {
    features.INDIRECT_DESC: "VIRTIO_RING_F_INDIRECT_DESC",
    features.EVENT_IDX: "VIRTIO_RING_F_EVENT_IDX",
    features.VERSION_1: "VIRTIO_F_VERSION_1",
    features.RING_RESET: "VIRTIO_F_RING_RESET",
}
"""The names of Linux' headers for status bits and for features of every device."""
_DESCRIPTOR_FLAGS = {NEXT: "next", WRITE: "write", INDIRECT: "indirect"}


def query_virtio(vm: VmControl) -> list[dict[str, str]]:
    """Return the virtio devices of the VM.

    Returns:
        [].name: type of the device, such as `virtio-balloon`
        [].path: path of the device, for the other commands
    In QEMU:
        the same
    """
    with vm.locked_devices() as devices:
        return [{"name": _qemu_name(name), "path": _path(name)} for name in devices]


def query_virtio_status(vm: VmControl, path: str) -> dict[str, Any]:
    """Return the state of a virtio device.

    Features without a name, if a driver accepts such, are the bits of a further member,
    `unknown-dev-features`.

    Arguments:
        path: the device
    Returns:
        name: type of the device, such as `virtio-balloon`
        device-id: virtio device ID
        vhost-started: false: no device is served by vhost
        device-endian: `little`
        guest-features.transports: features of every device that the driver has accepted, by name
        guest-features.dev-features: those of this device type
        host-features.transports: features of every device that are offered
        host-features.dev-features: those of this device type
        backend-features.transports: none, as no feature comes from a vhost backend
        backend-features.dev-features: none
        num-vqs: number of virtqueues
        status.statuses: bits of the device status that are set, by name
        isr: ISR status
        queue-sel: number of the queue that the driver has selected
        vm-running: whether the guest runs
        broken: whether the device has set DEVICE_NEEDS_RESET
        disabled: false
        use-started: true
        started: whether the device is live (DRIVER_OK)
        start-on-kick: false
        disable-legacy-check: false
        bus-name: empty: the transport is PCI
        use-guest-notifier-mask: false: a masked MSI-X vector is kept pending by the device
    Errors:
        GenericError: no device has this path
    In QEMU:
        the same; a colon and an explanation follow each name, and `vhost-dev` is there for a device
        that is served by vhost
    """
    with _device(vm, path) as (name, transport):
        device = transport.device
        return {
            "name": _qemu_name(name),
            "device-id": device.device_id,
            "vhost-started": False,
            "device-endian": "little",
            "guest-features": _features(device, device.accepted),
            "host-features": _features(device, device.offered),
            "backend-features": _features(device, 0),
            "num-vqs": sum(device.has_queue(queue.index) for queue in device.queues),
            "status": {"statuses": [STATUS_NAMES[bit] for bit in Status if bit & device.status]},
            "isr": transport.interrupts.isr_status,
            "queue-sel": transport.common.registers["queue_select"],
            "vm-running": vm.status == "running",
            "broken": bool(device.status & Status.DEVICE_NEEDS_RESET),
            "disabled": False,
            "use-started": True,
            "started": device.running,
            "start-on-kick": False,
            "disable-legacy-check": False,
            "bus-name": "",
            "use-guest-notifier-mask": False,
        }


def query_virtio_queue_status(vm: VmControl, path: str, queue: int) -> dict[str, Any]:
    """Return the state of a virtqueue.

    Addresses are guest-physical. Indices count modulo 2^16, and are 0 while the queue is not live.

    Arguments:
        path: the device
        queue: number of the queue
    Returns:
        name: type of the device
        queue-index: number of the queue
        inuse: buffers that the device has taken and not returned
        vring-num: size of the queue
        vring-num-default: its maximum
        vring-align: 4096, which has a meaning in the legacy interface only
        vring-desc: address of the descriptor table
        vring-avail: address of the available ring
        vring-used: address of the used ring
        last-avail-idx: index of the buffer that the device takes next
        shadow-avail-idx: index that the driver has published in the available ring
        used-idx: index of the next used element
        signalled-used: the same: the device decides whether to notify after each batch of buffers
        signalled-used-valid: whether the queue is live
    Errors:
        GenericError: no device has this path, or it has no such queue
    In QEMU:
        the same; `last-avail-idx` and `shadow-avail-idx` may be missing with vhost
    """
    with _queue(vm, path, queue) as (name, found):
        ring = found.ring
        taken, used = (ring.next_avail, ring.next_used) if ring is not None else (0, 0)
        return {
            "name": _qemu_name(name),
            "queue-index": found.index,
            "inuse": (taken - used) & 0xFFFF,
            "vring-num": found.size,
            "vring-num-default": found.spec.max_size,
            "vring-align": VRING_ALIGN,
            "vring-desc": found.desc_gpa,
            "vring-avail": found.driver_gpa,
            "vring-used": found.device_gpa,
            "last-avail-idx": taken,
            "shadow-avail-idx": 0 if ring is None else _contents(found).avail_idx,
            "used-idx": used,
            "signalled-used": used,
            "signalled-used-valid": ring is not None,
        }


def query_virtio_vhost_queue_status(vm: VmControl, path: str, queue: int) -> NoReturn:
    """Fail, as no device of pyvmm is served by vhost.

    Arguments:
        path: the device
        queue: number of the queue
    Errors:
        GenericError: always: no device has this path, or vhost has not started
    In QEMU:
        the state of a virtqueue that vhost serves, and these errors
    """
    with _device(vm, path):
        raise QmpError("Error: vhost device has not started yet")


def query_virtio_queue_element(
    vm: VmControl, path: str, queue: int, index: int | None = None
) -> dict[str, Any]:
    """Return a buffer of a live virtqueue as it is in guest memory at the moment.

    Arguments:
        path: the device
        queue: number of the queue
        index: index in the available ring, modulo the size of the queue; by default that of the
            buffer that the device takes next
    Returns:
        name: type of the device
        index: the first descriptor of the buffer
        descs[].addr: address of a descriptor of the chain, of which at most as many are returned as
            the queue has; those of an indirect table stand for the one that refers to it
        descs[].len: its bytes
        descs[].flags: a list of `next`, `write` and `indirect`
        avail.flags: flags of the available ring
        avail.idx: index of the available ring
        avail.ring: the element of the available ring: the same as `index`
        used.flags: flags of the used ring
        used.idx: index of the used ring
    Errors:
        GenericError: no device has this path, it has no such queue, the queue is not live, or its
            chain leaves the descriptor table or RAM
    In QEMU:
        the same
    """
    with _queue(vm, path, queue) as (name, found):
        if found.ring is None:
            raise QmpError("Region caches not initialized")
        contents = _contents(found)
        slot = (contents.next_avail if index is None else index) % contents.size
        head = contents.avail_ring[slot]
        return {
            "name": _qemu_name(name),
            "index": head,
            "descs": _descriptors(contents, head),
            "avail": {"flags": contents.avail_flags, "idx": contents.avail_idx, "ring": head},
            "used": {"flags": contents.used_flags, "idx": contents.used_idx},
        }


def _descriptors(contents: QueueContents, head: int) -> list[dict[str, Any]]:
    try:
        chain = contents.chain(head)
    except (IndexError, ValueError, GuestAddressError) as error:
        raise QmpError(f"The chain from descriptor {head} is malformed: {error}") from None
    if chain[0].flags & INDIRECT:  # followed by the descriptors of its table
        chain = chain[1:]
    return [_descriptor(each) for each in chain]


def _descriptor(descriptor: Descriptor) -> dict[str, Any]:
    flags = [name for bit, name in _DESCRIPTOR_FLAGS.items() if descriptor.flags & bit]
    return {"addr": descriptor.gpa, "len": descriptor.length, "flags": flags}


def _contents(queue: DeviceQueue) -> QueueContents:
    try:
        return inspect_queue(queue)
    except GuestAddressError as error:
        raise QmpError(f"The queue cannot be read: {error}") from None


def _features(device: VirtioDevice, mask: int) -> dict[str, Any]:
    """Return a feature set as QEMU's VirtioDeviceFeatures."""
    prefix = f"VIRTIO_{device.name.upper()}_F_"
    named = {bit: name for bit, name in device.feature_names.items() if mask & bit}
    unknown = mask & ~sum(TRANSPORT_NAMES) & ~sum(named)
    result: dict[str, Any] = {
        "transports": [name for bit, name in TRANSPORT_NAMES.items() if mask & bit],
        "dev-features": [f"{prefix}{name}" for name in named.values()],
    }
    if unknown:
        result["unknown-dev-features"] = unknown
    return result


def _qemu_name(name: str) -> str:
    return QEMU_NAMES.get(name, f"virtio-{name}")


def _path(name: str) -> str:
    return f"/machine/peripheral/{name}0/virtio-backend"


@contextmanager
def _device(vm: VmControl, path: str) -> Iterator[tuple[str, VirtioPciTransport]]:
    """Yield the name of the device at `path` and its transport, with the device lock held."""
    with vm.locked_devices() as devices:
        for name, transport in devices.items():
            if path == _path(name):
                yield name, transport
                return
        raise QmpError(f"Path {path} is not a VirtIODevice")


@contextmanager
def _queue(vm: VmControl, path: str, index: int) -> Iterator[tuple[str, DeviceQueue]]:
    """Yield the name of the device at `path` and one of its queues, with the device lock held."""
    with _device(vm, path) as (name, transport):
        if not transport.device.has_queue(index):
            raise QmpError(f"Invalid virtqueue number {index}")
        yield name, transport.device.queues[index]


def _u16(name: str, expects: str, *, required: bool = True) -> Parameter:
    return Parameter(
        name,
        int,
        required=required,
        expects=f"{expects}, from 0 to 65535",
        accepts=lambda value: 0 <= value < 1 << 16,
    )


_PATH = Parameter("path", str)
_QUEUE = _u16("queue", "the number of a queue")

COMMANDS = {
    "x-query-virtio": Command(query_virtio),
    "x-query-virtio-status": Command(query_virtio_status, (_PATH,)),
    "x-query-virtio-queue-status": Command(query_virtio_queue_status, (_PATH, _QUEUE)),
    "x-query-virtio-vhost-queue-status": Command(query_virtio_vhost_queue_status, (_PATH, _QUEUE)),
    "x-query-virtio-queue-element": Command(
        query_virtio_queue_element, (_PATH, _QUEUE, _u16("index", "an index", required=False))
    ),
}
