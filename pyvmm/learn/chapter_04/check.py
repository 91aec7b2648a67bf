# SPDX-License-Identifier: Apache-2.0
"""Check of chapter 4: the driver keeps its books right, whatever the order of returned buffers.

The device's side is pyvmm's own. After each buffer the check walks all chains in flight in the
descriptor table, to find descriptors that belong to two of them.
"""

from __future__ import annotations

import struct
from typing import Any

from devices.testing import DriverQueue, guest_memory
from pyvmm.learn.checking import CheckFailed, expect
from pyvmm_native.ring import Chain, RingError

SIZE = 8
DATA_GPA = 0x8000
NEXT = 1
REUSE = (
    "A driver reuses a descriptor only when the device has returned its buffer, and the descriptors"
    " of a chain need not be neighbours (VIRTIO 1.2, 2.7.5)."
)
MANY = 66_000
"""More buffers than ring indices count: they are modulo 2^16."""


class _Queue:
    """The exercise's driver of a queue, and the device's side of it."""

    def __init__(self, exercise: Any) -> None:
        self.element = exercise.Element
        layout = DriverQueue(guest_memory(1 << 16), SIZE)
        self.memory, self.desc_gpa = layout.memory, layout.desc_gpa
        self.device = layout.device_queue()
        self.driver = exercise.SplitDriver(
            layout.memory, SIZE, layout.desc_gpa, layout.avail_gpa, layout.used_gpa
        )
        self.in_flight: dict[int, int] = {}
        """The number of elements of each buffer that the device has, by head."""

    def add(self, elements: int) -> int:
        """Add a buffer of `elements`, the last of them writable; return its head."""
        places = [self.element(DATA_GPA + 64 * i, 16, i == elements - 1) for i in range(elements)]
        try:
            head = self.driver.add(places)
        except IndexError:
            used = sum(self.in_flight.values())
            raise CheckFailed(
                f"The device has {used} descriptors, so {SIZE - used} of {SIZE} are free, and the"
                f" driver has found too few for a buffer of {elements}. When a buffer comes back,"
                " each descriptor of its chain is free again (VIRTIO 1.2, 2.7.5)."
            ) from None
        expect(
            head not in self.in_flight,
            f"Descriptor {head} is the head of a buffer that the device has, and of a new one."
            f" {REUSE}",
        )
        self.in_flight[head] = elements
        self._check_owners()
        return int(head)

    def take(self) -> Chain:
        """Take the next buffer as the device."""
        try:
            chain = self.device.pop(4096)
        except RingError as error:
            raise CheckFailed(f"The device cannot read the queue: {error}.") from None
        if chain is None:
            raise CheckFailed("The driver has made a buffer available, and the device sees none.")
        return chain

    def complete(self, chain: Chain, written: int) -> None:
        """Return `chain` as the device, and let the driver take it."""
        self.device.push(chain, written)
        del self.in_flight[chain.head]
        taken = [tuple(each) for each in self.driver.take_used()]
        expect(
            taken == [(chain.head, written)],
            f"The device has returned the buffer with head {chain.head} and {written} bytes"
            f" written, and `take_used` has returned {taken}.",
        )

    def _check_owners(self) -> None:
        owners: dict[int, int] = {}
        for head, elements in self.in_flight.items():
            index = head
            for _ in range(elements):
                expect(
                    index not in owners,
                    f"Descriptor {index} belongs to two buffers that the device has, with heads"
                    f" {owners.get(index)} and {head}: the later has overwritten it. {REUSE}",
                )
                owners[index] = head
                entry = self.memory.read(self.desc_gpa + 16 * index, 16)
                _, _, flags, following = struct.unpack("<QIHH", entry)
                index = following if flags & NEXT else -1


def check(exercise: Any) -> None:
    """Check `SplitDriver` of the module `exercise`."""
    _check_in_order(exercise)
    _check_any_order(exercise)
    _check_full(exercise)
    _check_many(exercise)


def _check_in_order(exercise: Any) -> None:
    queue = _Queue(exercise)
    for number in range(4 * SIZE):
        queue.add(1 + number % 3)
        queue.complete(queue.take(), 16)


def _check_any_order(exercise: Any) -> None:
    queue = _Queue(exercise)
    chains: list[Chain] = []
    for number in range(100):
        elements = 1 + number % 3
        while SIZE - sum(queue.in_flight.values()) < elements:
            queue.complete(chains.pop(len(chains) // 2), number % 16)
        queue.add(elements)
        chains.append(queue.take())


def _check_full(exercise: Any) -> None:
    queue = _Queue(exercise)
    for _ in range(SIZE // 2):
        queue.add(2)
    try:
        queue.driver.add([queue.element(DATA_GPA, 16)])
    except IndexError:
        return
    expect(
        False,
        f"The device has all {SIZE} descriptors, and the driver has accepted another buffer. A"
        " driver reuses a descriptor only when the device has returned its buffer.",
    )


def _check_many(exercise: Any) -> None:
    queue = _Queue(exercise)
    element = queue.element(DATA_GPA, 16)
    for number in range(MANY):
        try:
            queue.driver.add([element])
        except (struct.error, OverflowError) as error:
            raise CheckFailed(
                f"Buffer {number} has raised {error!r}. Ring indices count modulo 2^16, and the"
                " slot of an index is the index modulo the size of the queue (VIRTIO 1.2, 2.7.6)."
            ) from None
        chain = queue.device.pop(64)
        expect(chain is not None, f"The device has seen no buffer after {number} of them.")
        assert chain is not None
        queue.device.push(chain, 0)
        expect(len(queue.driver.take_used()) == 1, f"Buffer {number} has not come back.")
