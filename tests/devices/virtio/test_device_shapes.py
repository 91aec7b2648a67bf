# SPDX-License-Identifier: Apache-2.0
"""Devices of any shape on the PCI bus: with one queue or eight, without a configuration space."""

from __future__ import annotations

import pytest

from devices.testing.board import Board
from devices.testing.driver import DEVICE_CFG, VirtioDriver
from devices.testing.ram import AnonymousRam
from devices.testing.recorders import RecordingTracer
from devices.virtio.device import VirtioDevice
from devices.virtio.pci_transport import MAX_QUEUES
from devices.virtio.queue import DeviceQueue, QueueSpec
from pyvmm_native.ring import Chain


class Reverse(VirtioDevice):
    """Returns each request reversed."""

    def __init__(self, ram: AnonymousRam, tracer: RecordingTracer, queues: int) -> None:
        super().__init__(
            device_id=63,
            name="reverse",
            queues=[QueueSpec(f"queue {index}") for index in range(queues)],
            memory=ram.memory,
            tracer=tracer,
        )

    def serve(self, queue: int, chain: Chain) -> int:
        return chain.write(chain.readable[::-1])


def board(queues: int) -> Board:
    tracer = RecordingTracer()
    return Board(Reverse(AnonymousRam(), tracer, queues), tracer)


@pytest.mark.parametrize("queues", [1, 8])
def test_every_queue_has_its_own_notifications(queues: int) -> None:
    driver = VirtioDriver(board(queues)).start()
    driver.enable_msix()
    assert driver.read_common("num_queues") == queues
    assert driver.msix_vectors == queues + 1
    for index in range(queues):
        driver.queues[index].add([b"abc"], [3])
        driver.notify(index)
        driver.board.serve()
        (used,) = driver.queues[index].take_used()
        assert used.data == b"cba"
        assert driver.board.msi.triggered == list(range(1, index + 2)), "one vector each"


@pytest.mark.parametrize("queues", [0, MAX_QUEUES + 1])
def test_a_number_of_queues_that_pci_cannot_carry_is_refused(queues: int) -> None:
    with pytest.raises(ValueError, match=f"reverse: {queues} queues, not 1 to {MAX_QUEUES}"):
        board(queues)


@pytest.mark.parametrize("size", [0, 100, 65536])
def test_a_queue_size_that_virtio_does_not_allow_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"request: a queue of {size} entries"):
        DeviceQueue(0, QueueSpec("request", size))


def test_the_largest_number_of_queues_works() -> None:
    assert VirtioDriver(board(MAX_QUEUES)).probe().read_common("num_queues") == MAX_QUEUES


@pytest.mark.conformance("4.1.4.6-1")
def test_a_device_without_configuration_has_no_structure_for_it() -> None:
    driver = VirtioDriver(board(1)).start()
    assert DEVICE_CFG not in driver.structures
    assert driver.board.device.config.size_bytes == 0
