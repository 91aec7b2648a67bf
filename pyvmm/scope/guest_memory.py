# SPDX-License-Identifier: Apache-2.0
"""The rings and buffers of a queue, read from the guest's memory while it runs (VIRTIO 1.2, 2.7).

The driver owns this memory and may have written anything, or be writing: walks are bounded by the
size of the queue, only addresses in RAM are read (the VMM checks them), and of each part of a
buffer at most the first `MAX_PART_BYTES` are.
"""

from __future__ import annotations

import base64
import struct
from collections import Counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from devices.virtio.description import BufferBytes
from devices.virtio.inspection import INDIRECT, NEXT, WRITE
from pyvmm.machine.catalogue import describer
from pyvmm.qmp.messages import QmpError
from pyvmm.qmp.trace_commands import MAX_CELL_PAGES, MIN_CELL_PAGES
from pyvmm_native import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyvmm.scope.live_guest import LiveGuest

MAX_PART_BYTES = 4096
MAX_QUEUE_SIZE = 1 << 15
"""The largest size that a queue can have (2.7)."""
_DESCRIPTOR = struct.Struct("<QIHH")
_PAGE_STATES = struct.Struct("<Q5I")
"""A row of `x-query-page-states`."""
_LATER = 1 << 16


class QueuePlace(NamedTuple):
    """A live queue: its addresses, and the device's own index."""

    size: int
    desc_gpa: int
    driver_gpa: int
    device_gpa: int
    next_avail: int
    device: str = ""
    name: str = ""
    features: int = 0
    """The features that the driver has accepted."""
    properties: Mapping[str, str] = MappingProxyType({})
    """Further properties of the device, which its buffers depend on."""


async def find_queue(guest: LiveGuest, device: str, name: str) -> QueuePlace:
    """Return the place of a live queue. Raises `QmpError`, also if there is none."""
    registers = await guest.query("x-query-pci-registers", device=device)
    for queue in registers["queues"]:
        if queue["name"] == name:
            if not queue["live"]:
                raise QmpError(f"the driver has not set up the queue {name} of {device}")
            return QueuePlace(
                min(queue["size"], MAX_QUEUE_SIZE),
                queue["desc"],
                queue["driver"],
                queue["device"],
                queue["next-avail"],
                device=device,
                name=name,
                features=registers["features"]["accepted"],
                properties=registers["properties"],
            )
    raise QmpError(f"{device} has no queue {name}")


async def read_rings(guest: LiveGuest, queue: QueuePlace) -> dict[str, Any]:
    """Return the descriptor table and both rings, ready for JSON. Raises `QmpError`."""
    size = queue.size
    table = await _read(guest, queue.desc_gpa, _DESCRIPTOR.size * size)
    avail = await _read(guest, queue.driver_gpa, 6 + 2 * size)
    used = await _read(guest, queue.device_gpa, 6 + 8 * size)
    avail_flags, avail_idx, *avail_ring, used_event = struct.unpack(f"<{size + 3}H", avail)
    used_flags, used_idx = struct.unpack_from("<HH", used)
    used_ring = [list(pair) for pair in struct.iter_unpack("<II", used[4:-2])]
    return {
        "size": size,
        "descriptors": [list(each) for each in _DESCRIPTOR.iter_unpack(table)],
        "avail": {
            "flags": avail_flags,
            "idx": avail_idx,
            "ring": avail_ring,
            "used_event": used_event,
        },
        "used": {
            "flags": used_flags,
            "idx": used_idx,
            "ring": used_ring,
            "avail_event": int.from_bytes(used[-2:], "little"),
        },
        "next_avail": queue.next_avail,
        "heads_in_flight": heads_in_flight(
            avail_ring, [head for head, _ in used_ring], queue.next_avail, used_idx
        ),
    }


def heads_in_flight(
    avail_ring: Sequence[int], used_ring: Sequence[int], next_avail: int, used_idx: int
) -> list[int]:
    """Return the heads that the device has taken and not returned, the oldest first.

    The rings remember the last `size` takes and returns; heads that occur among those takes more
    often than among the returns of the same buffers are in flight.
    """
    size = len(avail_ring)
    count = (next_avail - used_idx) % _LATER
    if not 0 < count <= size:
        return []
    taken = [avail_ring[(next_avail - back) % _LATER % size] for back in range(size, 0, -1)]
    returned = Counter(
        used_ring[(used_idx - back) % _LATER % size] for back in range(size - count, 0, -1)
    )
    found = []
    for head in taken:
        if returned[head]:
            returned[head] -= 1
        else:
            found.append(head)
    return found[-count:]


async def read_page_states(guest: LiveGuest, cells: int) -> dict[str, Any]:
    """Return the pages of RAM by state, in at most about `cells` cells. Raises `QmpError`."""
    summary = await guest.query("query-memory-size-summary")
    pages = -(-summary["base-memory"] // (PAGE_BYTES * cells))
    pages_per_cell = min(max(1 << (pages - 1).bit_length(), MIN_CELL_PAGES), MAX_CELL_PAGES)
    found = await guest.query("x-query-page-states", **{"pages-per-cell": pages_per_cell})
    rows = _PAGE_STATES.iter_unpack(base64.b64decode(found["cells"]))
    return {
        "cell_bytes": pages_per_cell * PAGE_BYTES,
        "cells": [list(row) for row in rows],
        "ballooned": found["ballooned"],
        "rss": found["rss"],
    }


async def read_buffer(guest: LiveGuest, queue: QueuePlace, head: int) -> dict[str, Any]:
    """Return the buffer from descriptor `head` on, ready for JSON. Raises `QmpError`.

    `readable` and `writable` are its first bytes.
    """
    descriptors = await _walk(guest, queue, head)
    parts = []
    for write in (0, WRITE):
        data = b""
        for each in descriptors:
            if each["flags"] & INDIRECT or each["flags"] & WRITE != write:
                continue
            if not (room := MAX_PART_BYTES - len(data)):
                break
            if length := min(each["length"], room):
                data += await _read(guest, each["gpa"], length)
        parts.append(data)
    return {
        "descriptors": descriptors,
        "readable": base64.b64encode(parts[0]).decode(),
        "writable": base64.b64encode(parts[1]).decode(),
        "described": _described(queue, *parts),
    }


def _described(queue: QueuePlace, readable: bytes, writable: bytes) -> list[dict[str, Any]]:
    """Return the fields of a buffer; none if the device is not of the catalogue."""
    describe = describer(queue.device)
    if describe is None:
        return []
    buffer = BufferBytes(queue.name, readable, writable, queue.features, queue.properties)
    return [field._asdict() for field in describe(buffer)]


async def _walk(guest: LiveGuest, queue: QueuePlace, head: int) -> list[dict[str, int]]:
    """Return the descriptors from `head`, those of an indirect table after it (2.7.5.3)."""
    table = await _read(guest, queue.desc_gpa, _DESCRIPTOR.size * queue.size)
    found: list[dict[str, int]] = []
    table_gpa, index = 0, head
    while len(found) <= queue.size and (index + 1) * _DESCRIPTOR.size <= len(table):
        gpa, length, flags, following = _DESCRIPTOR.unpack_from(table, index * _DESCRIPTOR.size)
        found.append(
            {
                "table_gpa": table_gpa,
                "index": index,
                "gpa": gpa,
                "length": length,
                "flags": flags,
                "next": following,
            }
        )
        if flags & INDIRECT and not table_gpa:
            size_bytes = min(length, _DESCRIPTOR.size * queue.size)
            table = await _read(guest, gpa, size_bytes) if size_bytes else b""
            table_gpa, index = gpa, 0
        elif flags & NEXT:
            index = following
        else:
            break
    return found


async def _read(guest: LiveGuest, gpa: int, size: int) -> bytes:
    reply = await guest.query("x-read-memory", gpa=gpa, size=size)
    return base64.b64decode(reply["data"])
