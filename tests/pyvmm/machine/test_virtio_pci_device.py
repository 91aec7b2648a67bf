# SPDX-License-Identifier: Apache-2.0
"""A device in a slot: its vectors, its place on the bus, and its errors on the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from devices.bus import Bus
from devices.pci.host_bridge import PciBus
from devices.testing.ram import AnonymousRam
from devices.testing.recorders import RecordingTracer
from devices.virtio.device import VirtioDevice
from devices.virtio.queue import QueueSpec
from pyvmm.machine.interrupts import InterruptRouter
from pyvmm.machine.virtio_pci_device import VirtioPciDevice
from pyvmm.memory.layout import FIRST_MSI_GSI, intx_gsi
from pyvmm.units import MIB
from pyvmm_native.ring import Chain
from tests.pyvmm.machine.recording_vm import RecordingVm

QUEUES, SLOT = 3, 5


class PlainDevice(VirtioDevice):
    """A device with three queues."""

    def __init__(self) -> None:
        super().__init__(
            device_id=63,
            name="plain",
            queues=[QueueSpec(f"queue{number}") for number in range(QUEUES)],
            memory=AnonymousRam((0, 64 * MIB)).memory,
            tracer=RecordingTracer(),
        )

    def serve(self, queue: int, chain: Chain) -> int:
        return 0


class SlotBoard:
    """A `PlainDevice` in a slot of a PCI bus."""

    def __init__(self) -> None:
        self.recording = RecordingVm()
        self.router = InterruptRouter(self.recording.vm)
        self.pci = PciBus(Bus("mmio"), [])
        self.lock = threading.Lock()
        self.errors: list[BaseException] = []
        self.device = VirtioPciDevice(
            PlainDevice(),
            SLOT,
            pci=self.pci,
            router=self.router,
            lock=self.lock,
            tracer=RecordingTracer(),
            on_error=self.errors.append,
        )


@pytest.fixture
def board() -> Iterator[SlotBoard]:
    board = SlotBoard()
    yield board
    board.device.close()


def test_each_queue_and_the_configuration_have_a_vector(board: SlotBoard) -> None:
    assert board.router.allocate_gsi() == FIRST_MSI_GSI + QUEUES + 1
    assert board.device.transport.msix.vectors == QUEUES + 1


def test_the_function_is_in_its_slot_and_drives_the_line_of_the_slot(board: SlotBoard) -> None:
    function = board.pci.function(0, SLOT, 0)
    assert function is board.device.transport.function
    function.set_interrupt_level(True)
    assert board.recording.levels == [(intx_gsi(SLOT), 1)]


def test_an_exception_of_the_model_is_reported_and_the_lock_released(
    board: SlotBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug = RuntimeError("a bug")
    served: list[int] = []

    def serve_queue(queue: int) -> bool:
        assert board.lock.locked()
        served.append(queue)
        raise bug

    monkeypatch.setattr(board.device.transport, "serve_queue", serve_queue)

    async def main() -> None:
        board.device.start(asyncio.get_running_loop())
        board.device._host_notifiers.notify(1)
        await asyncio.sleep(0.05)
        board.device.stop()

    asyncio.run(main())
    assert (served, board.errors) == ([1], [bug])
    assert not board.lock.locked()
