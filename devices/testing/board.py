# SPDX-License-Identifier: Apache-2.0
"""A virtio device on a PCI bus, without a machine.

`Board` connects a device to its PCI transport as a machine does, and replaces everything outside by
recorders. `Board.serve` stands in for the event loop. The driver's side is `VirtioDriver`:

    board = Board(MyDevice(ram.memory, tracer), tracer)
    driver = VirtioDriver(board).start()
"""

from __future__ import annotations

from devices.bus import Bus
from devices.pci.host_bridge import PciBus
from devices.testing.recorders import (
    RecordingHostNotifiers,
    RecordingInterruptLine,
    RecordingMsiSink,
    RecordingTracer,
)
from devices.virtio.device import VirtioDevice
from devices.virtio.pci_transport import VirtioPciTransport

APERTURE = (0xC000_0000, 0x1000_0000)
"""(gpa, size in bytes) of the range in which BARs are decoded."""

SLOT = 3
"""PCI device number of the device."""


class Board:
    """`device` at 00:03.0 of a PCI bus, `pci`, whose BARs appear on `mmio`.

    `transport` is the device's PCI transport and `function` its PCI function.

    `tracer` is the device's, so that events of device and transport are recorded in order; by
    default a new one. Recorders keep the device's actions: `msi` the MSI-X vectors sent, `line` the
    level of INTx, `notifiers` the host notifiers and `tracer` the events.
    """

    def __init__(self, device: VirtioDevice, tracer: RecordingTracer | None = None) -> None:
        self.device = device
        self.tracer = tracer or RecordingTracer()
        self.msi = RecordingMsiSink()
        self.notifiers = RecordingHostNotifiers()
        self.line = RecordingInterruptLine()
        self.transport = VirtioPciTransport(device, self.msi, self.notifiers, self.tracer)
        self.function = self.transport.function
        self.mmio = Bus("mmio", tracer=self.tracer)
        self.pci = PciBus(self.mmio, [APERTURE])
        self.pci.add(SLOT, self.function, self.line)

    def serve(self) -> int:
        """Serve all notified queues, as an event loop does; return the number of calls it took.

        Does not return while the device keeps notifying itself.
        """
        calls = 0
        while self.notifiers.notified:
            queue = self.notifiers.notified.pop(0)
            calls += 1
            if self.transport.serve_queue(queue):
                self.notifiers.notify(queue)
        return calls
