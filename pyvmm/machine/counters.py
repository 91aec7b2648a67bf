# SPDX-License-Identifier: Apache-2.0
"""Counters of a running machine: exits of its vCPUs and requests in its queues.

Both are counted anyway; reading them costs only the one who asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.memory.rss import resident_bytes

if TYPE_CHECKING:
    from pyvmm.machine.machine import Machine

EXIT_REASONS = ("fast-path", "pio", "mmio", "interrupted", "other")
"""The reasons in `ExitCounters.counts`, in its order."""


class QueueCounts(NamedTuple):
    """The counts of one virtqueue since its device was created."""

    device: str
    queue: str
    requests: int
    """Buffers that the device has taken."""
    interrupts: int
    """Used buffer notifications sent to the driver."""


class MachineCounters(NamedTuple):
    """Counts since the machine was created."""

    resident_bytes: int
    """Memory of the VMM's process that is resident now; guest RAM is part of it."""
    exits: Mapping[str, int]
    """Exits of all vCPUs by `EXIT_REASONS`."""
    queues: Sequence[QueueCounts]


def read_counters(machine: Machine) -> MachineCounters:
    """Return the counters of `machine`; may be called on the event loop at any time."""
    counts = [thread.exits.counts for thread in machine.vcpu_threads]
    exits = dict(zip(EXIT_REASONS, map(sum, zip(*counts, strict=True)), strict=True))
    with machine.lock:
        queues = [
            QueueCounts(name, queue.spec.name, queue.counters.requests, queue.counters.interrupts)
            for name, device in machine.pci_devices.items()
            for queue in device.model.queues
        ]
    return MachineCounters(resident_bytes(), exits, queues)
