# SPDX-License-Identifier: Apache-2.0
"""The public test kit for device models: RAM, a board, a driver and recorders.

    from devices.testing import AnonymousRam, Board, RecordingTracer, Used, VirtioDriver
    from devices.virtio.device import VirtioDevice
    from devices.virtio.queue import QueueSpec

    class Echo(VirtioDevice):
        def serve(self, queue, chain):
            return chain.write(chain.readable)

    ram, tracer = AnonymousRam(), RecordingTracer()
    queues = [QueueSpec("echo")]
    echo = Echo(device_id=63, name="echo", queues=queues, memory=ram.memory, tracer=tracer)
    driver = VirtioDriver(Board(echo, tracer)).start()
    assert driver.send(0, [b"hello"], [5]) == [Used(head=0, length=5, data=b"hello")]
    assert driver.board.msi.triggered == [1], "the vector of queue 0"

The parts build on each other, and each can be used without those listed after it:

* `AnonymousRam` and `guest_memory`: guest RAM, with a record of the pages discarded;
* `RecordingTracer`, `RecordingMsiSink`, `RecordingInterruptLine`, `RecordingHostNotifiers` and
  `FakeTimers`: the ports of `devices.ports`, for a test to inspect and control;
* `DriverQueue`: the driver's side of one split virtqueue, for a native `SplitQueue` or a device;
* `Board`: a virtio device on a PCI bus, with the recorders around it;
* `VirtioDriver`: a driver that finds, configures and uses the device of a board by its registers.

`devices.testing.balloon` has drivers of the balloon, `devices.testing.states` saves and restores
devices, and `devices.testing.strategies` are Hypothesis strategies (`pip install
"pyvmm-kvm[hypothesis]"`). The kit needs no KVM, no privileges, no test runner and nothing of
`pyvmm`.
"""

from devices.testing.board import Board
from devices.testing.driver import ALL_FEATURES, VirtioDriver
from devices.testing.driver_queue import DriverQueue, Used
from devices.testing.ram import AnonymousRam, guest_memory
from devices.testing.recorders import (
    RecordingHostNotifiers,
    RecordingInterruptLine,
    RecordingMsiSink,
    RecordingTracer,
)
from devices.testing.timers import FakeTimers

__all__ = [
    "ALL_FEATURES",
    "AnonymousRam",
    "Board",
    "DriverQueue",
    "FakeTimers",
    "RecordingHostNotifiers",
    "RecordingInterruptLine",
    "RecordingMsiSink",
    "RecordingTracer",
    "Used",
    "VirtioDriver",
    "guest_memory",
]
