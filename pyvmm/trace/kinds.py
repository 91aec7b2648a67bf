# SPDX-License-Identifier: Apache-2.0
"""The kinds of events, with the names and units of their fields: the reference of the stream.

An event has the name of its kind, such as `descriptor`, or that after the name of a device and a
dot, such as `balloon.status`: such kinds are marked `of_device` here. All integers are unsigned.
Fields that end in `_bytes` or `_ns` have that unit, `gpa` are guest-physical addresses, flags are 1
or 0, and `pages` have 4 KiB. Strings may come from the guest.

A device can emit kinds that are not in the table: a recording carries the names of all its kinds
and fields. `tests/pyvmm/trace/test_kinds.py` compares the table with what the code emits.
"""

from __future__ import annotations

from typing import NamedTuple


class EventKind(NamedTuple):
    """One kind of event."""

    name: str
    meaning: str
    emitted_by: str
    """The module, or file of native code, that emits it."""
    fields: dict[str, str]
    """The meaning of each field, with its unit."""
    of_device: bool = False
    """The name of the event begins with that of the device."""


_DEVICE = {"device": "name of the device"}
_RING = {**_DEVICE, "queue": "name of the queue"}
_COUNT = {"count": "events of this kind so far; only the 1st, 2nd, 4th, 8th ... is emitted"}
_REGISTER = {
    "table": "the register table, such as `balloon.common`",
    "register": "name of the register",
}
_UNCLAIMED = {"bus": "`pio`, `mmio`, or a BAR", "address": "port or address", "size": "bytes"}
_RING_PYX, _REGISTERS = "pyvmm_native/ring.pyx", "devices.registers"
_VIRTIO, _INFLATE = "devices.virtio.device", "devices.balloon.page_queues"

_ACCESSES = (
    EventKind(
        "register_read",
        "The guest has read a register, whether the model or the fast path served it.",
        _REGISTERS,
        {**_REGISTER, "value": "the value returned"},
    ),
    EventKind(
        "register_write",
        "The guest writes a register.",
        _REGISTERS,
        {**_REGISTER, "value": "the value written"},
    ),
    EventKind("unclaimed_read", "A read that no device claims.", "devices.bus", _UNCLAIMED),
    EventKind(
        "unclaimed_write",
        "A write that no device claims.",
        "devices.bus",
        {**_UNCLAIMED, "value": "the value written"},
    ),
    EventKind(
        "bar_placed",
        "A BAR is decoded from now on.",
        "devices.pci.host_bridge",
        {"gpa": "where", "size_bytes": "its size"},
    ),
    EventKind(
        "bar_refused",
        "A BAR is outside the aperture, or overlaps another.",
        "devices.pci.host_bridge",
        {"gpa": "where", "size_bytes": "its size"},
    ),
    EventKind(
        "vm_exit",
        "One of every N exits of a vCPU, if that is asked for.",
        "pyvmm_native/kvm_run.pyx",
        {
            "vcpu": "number of the vCPU",
            "reason": "`pio`, `mmio`, `fast path`, `interrupted` or `other`",
            "address": "port or address, 0 if it is no access",
            "size": "bytes",
            "write": "flag: a write",
        },
    ),
    EventKind(
        "vm_exits",
        "Exits of a vCPU since the machine was created, whenever a batch is taken.",
        "pyvmm.trace.taker",
        {
            "vcpu": "number of the vCPU",
            "fast_path": "accesses served in the KVM_RUN loop",
            "pio": "port accesses served by models",
            "mmio": "memory accesses served by models",
            "interrupted": "by a signal",
            "other": "all others",
        },
    ),
)

_NEGOTIATION = (
    EventKind(
        "status",
        "The device status changes (VIRTIO 1.2, 2.1).",
        _VIRTIO,
        {"before": "bits before", "status": "bits from now on", "names": "their names"},
        of_device=True,
    ),
    EventKind(
        "features",
        "The device accepts the driver's choice of features (2.2, 3.1.1).",
        _VIRTIO,
        {
            "offered": "bits offered",
            "accepted": "bits accepted",
            "offered_names": "their names",
            "accepted_names": "their names",
        },
        of_device=True,
    ),
    EventKind(
        "features_refused",
        "The device does not set FEATURES_OK (3.1.1).",
        _VIRTIO,
        {**_COUNT, "why": "the reason", "accepted": "names of the driver's choice"},
        of_device=True,
    ),
    EventKind(
        "features_too_late",
        "The driver writes features after FEATURES_OK; ignored (2.2).",
        _VIRTIO,
        {**_COUNT, "bits": "32 feature bits"},
        of_device=True,
    ),
    EventKind(
        "status_refused",
        "A write to the device status that breaks the order of 3.1.1; ignored.",
        _VIRTIO,
        {**_COUNT, "status": "bits, unchanged", "written": "bits written"},
        of_device=True,
    ),
    EventKind(
        "queue_live",
        "The device uses a queue from now on (4.1.4.3, 2.7).",
        _VIRTIO,
        {
            "queue": "name of the queue",
            "index": "its number",
            "size": "its entries",
            "desc_gpa": "descriptor table",
            "driver_gpa": "available ring",
            "device_gpa": "used ring",
            "event_idx": "flag: EVENT_IDX was negotiated",
            "indirect": "flag: INDIRECT_DESC was negotiated",
        },
        of_device=True,
    ),
    EventKind(
        "queue_reset",
        "The driver resets one queue (2.6.1).",
        _VIRTIO,
        {"queue": "name of the queue"},
        of_device=True,
    ),
    EventKind(
        "needs_reset",
        "A ring or chain is malformed: DEVICE_NEEDS_RESET is set (2.1.2).",
        _VIRTIO,
        {**_COUNT, "queue": "name of the queue", "why": "the fault"},
        of_device=True,
    ),
    EventKind(
        "bad_payload",
        "A buffer holds an invalid request, and is returned with length 0.",
        _VIRTIO,
        {**_COUNT, "queue": "name of the queue", "why": "the fault"},
        of_device=True,
    ),
)

_QUEUES = (
    EventKind(
        "notified",
        "The event loop takes the notifications of a queue (2.3).",
        "pyvmm.machine.host_notifiers",
        {
            "queue": "name of the queue",
            "caught": "writes of the driver that KVM has caught (ioeventfd)",
            "coalesced": "flag: more than one, so KVM has coalesced them",
            "own": "notifications by register accesses and by the device itself",
        },
        of_device=True,
    ),
    EventKind(
        "avail_notifications",
        "The device asks for available buffer notifications, or suppresses them (2.7.10).",
        _RING_PYX,
        {
            **_RING,
            "enabled": "flag: asks for them",
            "why": "by `flag`, or by `event index` (EVENT_IDX)",
            "avail_event": "with EVENT_IDX: index whose buffer the driver announces",
        },
    ),
    EventKind(
        "descriptor",
        "A descriptor as it is walked, before it is checked (2.7.5).",
        _RING_PYX,
        {
            **_RING,
            "head": "index of the chain's first descriptor",
            "table_gpa": "the indirect table that it is in; 0 for the queue's own",
            "index": "its index in that table",
            "gpa": "address of the buffer, or of an indirect table",
            "length": "bytes",
            "flags": "1 NEXT, 2 WRITE, 4 INDIRECT",
            "next": "index of the next one, with NEXT",
        },
    ),
    EventKind(
        "chain",
        "The device takes a buffer, whose descriptors are the events before (2.7.13). One that it"
        " puts back it walks and takes again, at the same avail_index.",
        _RING_PYX,
        {
            **_RING,
            "head": "index of its first descriptor",
            "avail_index": "available index from which it was taken, modulo 2^16",
            "elements": "descriptors that are buffers",
            "readable_bytes": "device-readable bytes",
            "writable_bytes": "device-writable bytes",
        },
    ),
    EventKind(
        "used",
        "The device returns a buffer (2.7.8).",
        _RING_PYX,
        {
            **_RING,
            "head": "index of its first descriptor",
            "used_index": "used index at which it is, modulo 2^16",
            "length": "bytes written",
        },
    ),
    EventKind(
        "used_notification",
        "The device decides whether to notify the driver of used buffers (2.7.7).",
        _RING_PYX,
        {
            **_RING,
            "sent": "flag: it notifies",
            "why": "by `flag` NO_INTERRUPT, or by `event index` used_event (EVENT_IDX)",
            "used_event": "with EVENT_IDX: index that the driver waits for",
            "used_index": "index of the next used buffer",
            "buffers": "used since the last decision, at most 65536",
        },
    ),
    EventKind(
        "interrupt",
        "A notification on its way to the driver (4.1.5.3, 4.1.5.4).",
        "devices.virtio.pci_interrupts",
        {
            **_DEVICE,
            "cause": "name of the queue, or `config`",
            "how": "`msi-x`, `intx`, or not sent: `masked`, `no vector`, `no bus mastering`",
            "vector": "MSI-X vector, 65535 for none",
        },
    ),
    EventKind(
        "msix_route",
        "The message of an MSI-X vector changes.",
        "devices.pci.msix",
        {
            **_DEVICE,
            "vector": "number of the vector",
            "address": "message address",
            "data": "message data",
        },
    ),
)

_BALLOON = (
    EventKind(
        "target",
        "The host requests a size of the balloon (5.5.6).",
        "devices.balloon.device",
        {"pages": "requested pages"},
        of_device=True,
    ),
    EventKind(
        "actual",
        "The driver reports the size of the balloon.",
        "devices.balloon.device",
        {"pages": "pages in the balloon"},
        of_device=True,
    ),
    EventKind(
        "inflate",
        "Pages go into the balloon: the decoded request, and what became of it.",
        _INFLATE,
        {
            "pages": "pages of the request",
            "runs": "ranges of contiguous pages",
            "discarded_bytes": "host memory discarded",
        },
        of_device=True,
    ),
    EventKind(
        "deflate",
        "Pages leave the balloon.",
        _INFLATE,
        {"pages": "pages of the request", "runs": "ranges of contiguous pages"},
        of_device=True,
    ),
    EventKind(
        "report",
        "The driver reports free pages (5.5.6.7).",
        "devices.balloon.reporting",
        {
            "pages": "pages reported",
            "poison_val": "pattern in them; nothing is discarded unless it is 0",
            "discarded_bytes": "host memory discarded",
        },
        of_device=True,
    ),
    EventKind(
        "hints",
        "A request for free page hints ends (5.5.6.5).",
        "devices.balloon.hinting",
        {"result": "how it ended", "pages": "pages hinted"},
        of_device=True,
    ),
    EventKind(
        "misc",
        "A host request to the driver ends.",
        "devices.balloon.misc",
        {"command": "the command", "status": "how it ended"},
        of_device=True,
    ),
    EventKind(
        "late_message",
        "An answer to a host request that has ended; ignored.",
        "devices.balloon.misc",
        {"id": "number of the request"},
        of_device=True,
    ),
)

_HOST = (
    EventKind(
        "migration.round",
        "The destination has all of a round.",
        "pyvmm.migration.progress",
        {
            "round": "its number, from 1 on",
            "sent_bytes": "bytes sent",
            "duration_us": "microseconds it took",
            "dirty_pages_rate": "pages that changed per second of the round before",
        },
    ),
    EventKind(
        "dropped",
        "Events are missing here: they came faster than they could be kept.",
        "pyvmm.trace.stream",
        {"count": "their number"},
    ),
)

THEMES = {
    "Register accesses and VM exits": _ACCESSES,
    "Initialisation and errors of a virtio device": _NEGOTIATION,
    "Queues and interrupts": _QUEUES,
    "Balloon": _BALLOON,
    "Host": _HOST,
}
"""The kinds of events in the order of the reference."""

KINDS = tuple(kind for kinds in THEMES.values() for kind in kinds)
"""All kinds."""
