# SPDX-License-Identifier: Apache-2.0
"""What a device model is given from outside.

Device models know neither KVM nor threads nor sockets. Everything they need from their
surroundings comes through these small Protocols, so a unit test can drive any device with a few
lines of its own and the machine can connect the same device to irqfds, ioeventfds and real RAM.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """The host notifiers of one virtio device: they carry available buffer notifications.

    The transport assigns each live queue the guest-physical address at which the driver notifies
    it; the machine may then catch that write without a register access. Either way the queue is
    served later, by the owner of the notifiers.
    """

    def assign(self, queue: int, gpa: int | None) -> None:
        """Catch 16-bit writes to `gpa` as notifications of `queue`; None catches none."""

    def notify(self, queue: int) -> None:
        """Serve `queue` soon: a notification arrived as a register access."""


class Timer(Protocol):
    """A one-shot timer of a device model, on the guest's virtual clock."""

    @property
    def remaining_ns(self) -> int | None:
        """Nanoseconds until the timer expires, at least 0; None while it is not armed."""

    def arm(self, delay_ns: int) -> None:
        """Expire once, `delay_ns` nanoseconds from now; replaces an earlier deadline."""

    def cancel(self) -> None:
        """Do not expire."""


class Timers(Protocol):
    """Makes timers. Their clock stands while the guest is paused, as do their deadlines.

    A callback runs under the device lock, like every other call of a device model.
    """

    def now_ns(self) -> int:
        """Return the virtual clock: nanoseconds, never falling, from an arbitrary origin."""

    def timer(self, on_expiry: Callable[[], None]) -> Timer:
        """Make a timer, not armed, that calls `on_expiry` when it expires."""


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
