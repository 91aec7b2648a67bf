# SPDX-License-Identifier: Apache-2.0
"""The queues of the console and their numbers (VIRTIO 1.2, 5.3.2).

Queues 0 and 1 receive and transmit for port 0, 2 and 3 carry control messages, and port N has
queues 2 N + 2 and 2 N + 3. Linux fills a receive queue with pages, and transmits what a pipe holds,
up to 256 pages, as one buffer, which cannot have more elements than the queue has entries.
"""

from __future__ import annotations

from devices.console.control import HEADER
from devices.console.port import MAX_WRITE_BYTES
from devices.virtio.queue import QueueSpec

CONTROL_RECEIVE, CONTROL_TRANSMIT = 2, 3
"""Numbers of the control queues."""
RECEIVE_SIZE, TRANSMIT_SIZE = 64, 256
"""Largest sizes of the queues, in buffers; those of the control queues are `RECEIVE_SIZE`."""


def receive_queue(port: int) -> int:
    """Return the number of the receive queue of a port."""
    return 2 * port + 2 if port else 0


def transmit_queue(port: int) -> int:
    """Return the number of the transmit queue of a port."""
    return receive_queue(port) + 1


def port_of(queue: int) -> int | None:
    """Return the number of the port that has `queue`; None for a control queue."""
    if queue in (CONTROL_RECEIVE, CONTROL_TRANSMIT):
        return None
    return queue // 2 - 1 if queue > CONTROL_TRANSMIT else 0


def queue_specs(max_ports: int) -> list[QueueSpec]:
    """Return the properties of all queues, by number."""
    specs = []
    for queue in range(2 * max_ports + 2):
        port = port_of(queue)
        name = "control" if port is None else f"port {port}"
        transmitted_bytes = HEADER.size if port is None else MAX_WRITE_BYTES
        if queue % 2 == 0:
            specs.append(QueueSpec(f"{name} receive", RECEIVE_SIZE, max_readable_bytes=0))
        else:
            size = RECEIVE_SIZE if port is None else TRANSMIT_SIZE
            specs.append(QueueSpec(f"{name} transmit", size, transmitted_bytes, port is not None))
    return specs
