# SPDX-License-Identifier: Apache-2.0
"""What a device model is given from outside.

Device models know neither KVM nor threads nor sockets. Everything they need from their
surroundings comes through these small Protocols, so a unit test can drive any device with a few
lines of its own and the machine can connect the same device to irqfds, ioeventfds and real RAM.
"""

from __future__ import annotations

from typing import Protocol

from pyvmm_native.memory import GuestMemory
from pyvmm_native.runs import PageRuns


class BusDevice(Protocol):
    """Something that answers reads and writes inside its own address range.

    `offset` counts bytes from the start of the range, `size` is 1, 2, 4 or 8 bytes, and `value`
    is an unsigned little-endian integer of that size.
    """

    def read(self, offset: int, size: int) -> int: ...

    def write(self, offset: int, size: int, value: int) -> None: ...


class InterruptLine(Protocol):
    """One interrupt input of the platform's interrupt controller."""

    def set_level(self, level: bool) -> None: ...


class MsiSink(Protocol):
    """Where message-signalled interrupts of one function go, by vector number."""

    def route(self, vector: int, address: int, data: int) -> None:
        """The message of `vector` is now (address, data); the vector is unmasked and enabled."""

    def trigger(self, vector: int) -> None:
        """Send the message last given to `route`."""


class HostNotifiers(Protocol):
    """Where a virtio device's available buffer notifications are caught.

    The transport says at which guest-physical addresses its queues are notified; the machine may
    then serve those writes without going through the device's registers (ioeventfd). Either way
    the work is done later, by whoever owns the doorbells.
    """

    def place(self, queue: int, gpa: int | None) -> None:
        """Queue `queue` is notified by a write to `gpa`; None means no longer anywhere."""

    def ring(self, queue: int) -> None:
        """Have `queue` served soon: a notification arrived as a register access."""


class GuestRam(Protocol):
    """Guest RAM as the balloon needs it."""

    @property
    def memory(self) -> GuestMemory: ...

    @property
    def pages(self) -> PageRuns:
        """All RAM, in 4 KiB page frames."""

    @property
    def host_page_pages(self) -> int:
        """4 KiB pages in one host page: the unit in which memory can be given back."""

    def discard(self, runs: PageRuns) -> int:
        """Give whole host pages back to the host; returns bytes. `runs` lie inside `pages`."""


class Tracer(Protocol):
    """Receives named events with small integer or string fields, for logs and tests."""

    def event(self, name: str, **fields: int | str) -> None: ...
