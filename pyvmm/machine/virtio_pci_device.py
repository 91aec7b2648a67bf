# SPDX-License-Identifier: Apache-2.0
"""A virtio device of any type in a PCI slot of a machine.

One object holds everything that the machine adds to a virtio device of any type: the PCI transport,
a host notifier for each queue (ioeventfd), an MSI-X vector for each queue and one for configuration
changes (irqfd), the INTx line of the slot, and the queue work on the event loop, under the device
lock. The transport is the device's part of the machine's saved state.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from devices.pci.config_space import INTERRUPT_LINE_OFFSET
from devices.virtio.pci_transport import VirtioPciTransport
from pyvmm.machine.host_notifiers import IoeventfdNotifiers
from pyvmm.machine.interrupts import GsiLine, MsiVectors
from pyvmm.memory import layout

if TYPE_CHECKING:
    from devices.pci.host_bridge import PciBus
    from devices.ports import Tracer
    from devices.virtio.device import VirtioDevice
    from pyvmm.machine.event_loop import EventLoop
    from pyvmm.machine.interrupts import InterruptRouter


class VirtioPciDevice:
    """`model` in `slot`, the PCI device number, of a machine.

    `lock` is the device lock. `on_error` is called with exceptions of the model while a queue is
    served. `held()` is True while no queue is to be served, as the guest is held at an event.

    Threads: created before any vCPU runs, or with the device lock held; `start`, `stop` and `close`
    on the event loop.
    """

    def __init__(
        self,
        model: VirtioDevice,
        slot: int,
        *,
        pci: PciBus,
        router: InterruptRouter,
        lock: threading.Lock,
        tracer: Tracer,
        on_error: Callable[[BaseException], None],
        held: Callable[[], bool] = lambda: False,
    ) -> None:
        self.model = model
        self._lock = lock
        self._on_error = on_error
        queues = [queue.spec.name for queue in model.queues]
        self._host_notifiers = IoeventfdNotifiers(
            router.vm, model.name, queues, self._serve_queue, tracer, held
        )
        with ExitStack() as refused:
            refused.callback(self._host_notifiers.close)
            self._vectors = MsiVectors(router, len(queues) + 1)
            self.transport = VirtioPciTransport(model, self._vectors, self._host_notifiers, tracer)
            gsi = layout.intx_gsi(slot)
            pci.add(slot, self.transport.function, GsiLine(router.vm, gsi))
            refused.pop_all()
        # As PC firmware does. Linux uses it where no ACPI table has the routing.
        self.transport.function.config_write(INTERRUPT_LINE_OFFSET, 1, gsi)

    def start(self, loop: EventLoop) -> None:
        """Serve the queues on `loop`, including those notified before."""
        self._host_notifiers.start(loop)

    def stop(self) -> None:
        """Serve no queue until `start`; notifications stay pending."""
        self._host_notifiers.stop()

    def catch_notifications(self, caught: bool) -> None:
        """Let KVM catch notifications, or make them register accesses."""
        with self._lock:
            self._host_notifiers.set_caught(caught)

    def close(self) -> None:
        """Close the eventfds, after the vCPUs have ended."""
        self._host_notifiers.close()
        self._vectors.close()

    def _serve_queue(self, queue: int) -> bool:
        try:
            with self._lock:
                return self.transport.serve_queue(queue)
        except Exception as error:  # the loop would only log it
            self._on_error(error)
            return False
