# SPDX-License-Identifier: Apache-2.0
"""The decoded contents of a live queue: rings, chains, and whatever a hostile driver wrote."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given

from devices.testing import ALL_FEATURES, AnonymousRam, Board, RecordingTracer, VirtioDriver
from devices.testing.driver import EVENT_IDX, INDIRECT_DESC
from devices.testing.strategies import RingContents, ring_contents
from devices.virtio.device import VirtioDevice
from devices.virtio.inspection import QueueContents, UsedElement, inspect_queue
from devices.virtio.queue import QueueSpec
from pyvmm_native.ring import Chain

SIZE = 16
RAM_BYTES = 64 << 20


class Keeper(VirtioDevice):
    """Keeps every buffer until `finish`."""

    def __init__(self) -> None:
        super().__init__(
            device_id=63,
            name="keeper",
            queues=[QueueSpec("kept", SIZE)],
            memory=AnonymousRam((0, RAM_BYTES)).memory,
            tracer=RecordingTracer(),
        )
        self.kept: list[Chain] = []

    def serve(self, queue: int, chain: Chain) -> None:
        self.kept.append(chain)

    def finish(self) -> None:
        chain = self.kept.pop(0)
        self.complete(0, chain, chain.write(b"reply"))

    def contents(self) -> QueueContents:
        return inspect_queue(self.queues[0])


def started(features: int = ALL_FEATURES & ~EVENT_IDX) -> tuple[Keeper, VirtioDriver]:
    keeper = Keeper()
    return keeper, VirtioDriver(Board(keeper)).start(features=features)


def test_rings_and_the_chain_of_a_buffer_are_decoded() -> None:
    keeper, driver = started()
    driver.send(0, [b"request"], [64])
    driver.send(0, [], [8])
    seen = keeper.contents()
    queue = driver.queues[0]
    assert (seen.avail_idx, seen.used_idx, seen.next_avail, seen.in_flight) == (2, 0, 2, 2)
    assert (seen.last_available, seen.last_used) == (2, None)
    readable, writable = seen.chain(0)
    assert (readable.gpa, readable.length) == (queue.data_gpa, 7)
    assert str(readable) == f"{queue.data_gpa:#x}, 7 bytes, NEXT"
    assert str(writable) == f"{queue.data_gpa + 16:#x}, 64 bytes, WRITE"
    keeper.finish()
    seen = keeper.contents()
    assert (seen.used_idx, seen.in_flight) == (1, 1)
    assert seen.last_used == UsedElement(head=0, length=5)


def test_the_descriptors_of_an_indirect_table_follow_the_one_that_names_it() -> None:
    keeper, driver = started(ALL_FEATURES)
    assert driver.features & INDIRECT_DESC
    driver.send(0, [b"request"], [64], indirect=True)
    assert [str(each).split(", ", 1)[1] for each in keeper.contents().chain(0)] == [
        "32 bytes, INDIRECT",
        "7 bytes, NEXT",
        "64 bytes, WRITE",
    ]


def test_flags_and_event_indices_are_decoded() -> None:
    keeper, driver = started(ALL_FEATURES)
    queue, memory = driver.queues[0], keeper.memory
    memory.write(queue.avail_gpa, struct.pack(f"<{SIZE + 3}H", 0xA1, 0xA2, *range(SIZE), 0xA3))
    used = [word for head in range(SIZE) for word in (head, 0x1_0000 + head)]
    memory.write(queue.used_gpa, struct.pack(f"<HH{2 * SIZE}IH", 0xB1, 0xB2, *used, 0xB3))
    seen = keeper.contents()
    assert (seen.avail_flags, seen.avail_idx, seen.used_event) == (0xA1, 0xA2, 0xA3)
    assert list(seen.avail_ring) == list(range(SIZE))
    assert (seen.used_flags, seen.used_idx, seen.avail_event) == (0xB1, 0xB2, 0xB3)
    assert seen.used_ring == [UsedElement(head, 0x1_0000 + head) for head in range(SIZE)]


def test_the_printed_form_is_a_summary() -> None:
    keeper, driver = started()
    assert str(keeper.contents()) == (
        "kept: 16 entries, 0 in flight\n  available: idx 0, last None\n  used: idx 0, last none"
    )
    driver.send(0, [], [8])
    assert str(keeper.contents()).splitlines() == [
        "kept: 16 entries, 1 in flight",
        "  available: idx 1, last 0",
        "  used: idx 0, last none",
        f"  buffer 0: {driver.queues[0].data_gpa:#x}, 8 bytes, WRITE",
    ]


def test_a_queue_without_a_driver_is_refused() -> None:
    with pytest.raises(ValueError, match="queue kept is not live"):
        Keeper().contents()


@given(ring_contents(SIZE, RAM_BYTES))
def test_any_contents_can_be_printed(contents: RingContents) -> None:
    keeper, driver = started()
    contents.write_to(driver.queues[0])
    seen = keeper.contents()
    assert str(seen).startswith("kept: 16 entries")
    for head in range(SIZE):
        with contextlib.suppress(IndexError, ValueError):
            assert len(seen.chain(head)) <= 2 * SIZE
