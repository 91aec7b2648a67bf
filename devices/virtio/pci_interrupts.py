# SPDX-License-Identifier: Apache-2.0
"""Interrupts of a virtio PCI device: INTx with the ISR status field, or MSI-X vectors.

VIRTIO 1.2, sections 4.1.4.5 (ISR status), 4.1.5.1.2 (vector configuration), 4.1.5.3 and 4.1.5.4
(the two notifications). While MSI-X is enabled each event uses the vector that the driver mapped it
to, or none; otherwise the event sets its ISR bit, and INTx is the logical OR of the ISR bits.
"""

from __future__ import annotations

from collections.abc import Sequence

from devices.pci.config_space import PciFunction
from devices.pci.msix import MsixTable
from devices.ports import Tracer
from devices.state import Fields, Payload, Restore

NO_VECTOR = 0xFFFF
"""VIRTIO_MSI_NO_VECTOR: this event does not interrupt."""

ISR_QUEUE = 1 << 0
ISR_CONFIG = 1 << 1
"""Bits of the ISR status: queue interrupt and configuration change (4.1.4.5)."""


class PciInterrupts:
    """The guest notifiers of one device; vectors beyond the MSI-X table read as NO_VECTOR.

    `queues` are the names of its queues.
    """

    def __init__(
        self, function: PciFunction, msix: MsixTable, queues: Sequence[str], tracer: Tracer
    ) -> None:
        self._function = function
        self._msix = msix
        self._queue_names = queues
        self._tracer = tracer
        self.isr_status = 0
        """Pending events of INTx, bits ISR_*."""
        self.config_vector = NO_VECTOR
        """MSI-X vector of configuration changes, or NO_VECTOR."""
        self.queue_vectors = [NO_VECTOR] * len(queues)
        """MSI-X vector of each queue, or NO_VECTOR."""
        msix.control_written.add(self._drive_intx)

    def reset(self) -> None:
        """Unmap all events (4.1.5.1.2.1) and drop pending ones: nothing is sent now (2.4.1)."""
        self.config_vector = NO_VECTOR
        self.queue_vectors = [NO_VECTOR] * len(self.queue_vectors)
        self._msix.drop_pending()
        self.read_isr()

    def set_config_vector(self, vector: int) -> None:
        """Set config_msix_vector."""
        self.config_vector = self._mapped(vector)

    def set_queue_vector(self, queue: int, vector: int) -> None:
        """Set queue_msix_vector of `queue`."""
        self.queue_vectors[queue] = self._mapped(vector)

    def read_isr(self) -> int:
        """Return ISR status; reading clears it and deasserts the interrupt (4.1.4.5.1)."""
        value, self.isr_status = self.isr_status, 0
        self._drive_intx()
        return value

    def notify_used(self, queue: int) -> None:
        """Send a used buffer notification (4.1.5.3)."""
        if self._tracer.watched:
            self._emit(self._queue_names[queue], self.queue_vectors[queue])
        if not self._msix.enabled:
            self._set_isr(ISR_QUEUE)
        elif (
            vector := self.queue_vectors[queue]
        ) != NO_VECTOR and self._function.bus_master_enabled:
            self._msix.signal(vector)

    @property
    def memory_accessible(self) -> bool:
        """True with bus mastering, without which a PCI function must not access memory."""
        return self._function.bus_master_enabled

    def notify_config(self) -> None:
        """Send a configuration change notification (4.1.5.4)."""
        if self._tracer.watched:
            self._emit("config", self.config_vector)
        # 4.1.4.5.1: this bit MUST be set even while MSI-X is enabled.
        self._set_isr(ISR_CONFIG)
        if self._msix.enabled:
            self._signal(self.config_vector)

    def save_state(self) -> Payload:
        """Return ISR status and the vectors."""
        return {
            "isr_status": self.isr_status,
            "config_vector": self.config_vector,
            "queue_vectors": list(self.queue_vectors),
        }

    def check_state(self, fields: Fields) -> Restore:
        """Check the state; return the function that applies it and drives INTx."""
        isr_status = fields.number("isr_status", below=(ISR_QUEUE | ISR_CONFIG) + 1)
        config_vector = fields.number("config_vector")
        queue_vectors = fields.numbers("queue_vectors", count=len(self.queue_vectors))
        for name, vectors in (("config_vector", [config_vector]), ("queue_vectors", queue_vectors)):
            if any(vector != self._mapped(vector) for vector in vectors):
                raise fields.error(name, f"is beyond the {self._msix.vectors} vectors of the table")

        def restore() -> None:
            self.isr_status = isr_status
            self.config_vector, self.queue_vectors = config_vector, queue_vectors
            self._drive_intx()

        return restore

    def _set_isr(self, bit: int) -> None:
        self.isr_status |= bit
        self._drive_intx()

    def _drive_intx(self) -> None:
        """Assert INTx while any bit of ISR status is set, unless MSI-X is enabled (4.1.4.5.1)."""
        self._function.set_interrupt_level(bool(self.isr_status) and not self._msix.enabled)

    def _signal(self, vector: int) -> None:
        # A message is a memory write, which a function without bus mastering must not make.
        if vector != NO_VECTOR and self._function.bus_master_enabled:
            self._msix.signal(vector)

    def _emit(self, cause: str, vector: int) -> None:
        """Emit the event of an interrupt, before it is sent, with what happens to it."""
        if not self._msix.enabled:
            how, vector = "intx", NO_VECTOR
        elif vector == NO_VECTOR:
            how = "no vector"
        elif not self._function.bus_master_enabled:
            how = "no bus mastering"
        else:
            how = "msi-x" if self._msix.is_live(vector) else "masked"
        self._tracer.event(
            "interrupt", device=self._function.name, cause=cause, how=how, vector=vector
        )

    def _mapped(self, vector: int) -> int:
        """Return the vector to store: NO_VECTOR for a mapping that fails (4.1.5.1.2.1)."""
        return vector if vector < self._msix.vectors else NO_VECTOR
