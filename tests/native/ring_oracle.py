# SPDX-License-Identifier: Apache-2.0
"""An oracle for SplitQueue.pop in slow and plain Python.

`expected_pop` reads the ring with `GuestMemory.read` and follows VIRTIO 1.2, 2.7.4 to 2.7.6. It
shares neither code nor structure with the native queue. It returns the buffer that the next pop
must return, or raises `MalformedRing` where pop must raise RingError.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from devices.testing.driver_queue import INDIRECT, NEXT, WRITE, DriverQueue
from pyvmm_native.memory import GuestMemory


class MalformedRing(Exception):
    """The ring or the chain is malformed."""


class Element(NamedTuple):
    gpa: int
    length: int
    writable: bool


class Expected(NamedTuple):
    head: int
    readable: bytes
    readable_bytes: int
    writable_bytes: int


def expected_pop(
    driver: DriverQueue, next_avail: int, next_used: int, limit: int
) -> Expected | None:
    """Return the result of pop(limit) at index `next_avail`. Raises MalformedRing."""
    available = (driver.avail_idx - next_avail) % 65536
    unused = (driver.avail_idx - next_used) % 65536
    if not available <= unused <= driver.size:
        raise MalformedRing("index")
    if available == 0:
        return None
    slot = driver.avail_gpa + 4 + 2 * (next_avail % driver.size)
    head = int.from_bytes(driver.memory.read(slot, 2), "little")
    elements = chain_elements(driver, head)
    if sum(element.length for element in elements) > 1 << 32:
        raise MalformedRing("length")
    directions = [element.writable for element in elements]
    if directions != sorted(directions):
        raise MalformedRing("readable after writable")
    readable_bytes = sum(element.length for element in elements if not element.writable)
    readable = b""
    if readable_bytes <= limit:
        readable = b"".join(
            driver.memory.read(e.gpa, e.length) for e in elements if not e.writable and e.length
        )
    writable_bytes = sum(element.length for element in elements if element.writable)
    return Expected(head, readable, readable_bytes, writable_bytes)


def chain_elements(driver: DriverQueue, head: int) -> list[Element]:
    table_gpa, entries, nested = driver.desc_gpa, driver.size, False
    elements: list[Element] = []
    index = head
    while True:
        if index >= entries:
            raise MalformedRing("index")
        raw = driver.memory.read(table_gpa + 16 * index, 16)
        gpa, length, flags, following = struct.unpack("<QIHH", raw)
        if flags & INDIRECT:
            if nested or not driver.indirect or flags & NEXT or not length or length % 16:
                raise MalformedRing("indirect")
            if not in_one_region(driver.memory, gpa, length):
                raise MalformedRing("table address")
            table_gpa, entries, nested, index = gpa, length // 16, True, 0
            continue
        if len(elements) == driver.size:
            raise MalformedRing("too long")
        if length and not is_ram(driver.memory, gpa, length):
            raise MalformedRing("address")
        elements.append(Element(gpa, length, bool(flags & WRITE)))
        if not flags & NEXT:
            return elements
        index = following


def in_one_region(memory: GuestMemory, gpa: int, length: int) -> bool:
    return any(start <= gpa and gpa + length <= start + size for start, size in memory.regions)


def is_ram(memory: GuestMemory, gpa: int, length: int) -> bool:
    for start, size in memory.regions:  # ascending
        if start <= gpa < start + size:
            part = min(length, start + size - gpa)
            gpa, length = gpa + part, length - part
    return length == 0
