# SPDX-License-Identifier: Apache-2.0
"""The interfaces between device models and their environment.

Device models know neither KVM nor threads nor sockets. They use their environment through these
small Protocols, so a unit test needs a few lines to drive any device, and the machine connects the
same device to irqfds, ioeventfds and real RAM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pyvmm_native.events import EventBuffer
from pyvmm_native.memory import GuestMemory
from pyvmm_native.runs import PageRuns


class BusDevice(Protocol):
    """A device that serves reads and writes in its own address range.

    `offset` counts bytes from the start of the range, `size` is 1, 2, 4 or 8 bytes, and `value`
    is an unsigned little-endian integer of that size.
    """

    def read(self, offset: int, size: int) -> int:
        """Return the value of `size` bytes at `offset`."""

    def write(self, offset: int, size: int, value: int) -> None:
        """Write `value` to `size` bytes at `offset`."""


class InterruptLine(Protocol):
    """One interrupt input of the platform's interrupt controller."""

    def set_level(self, level: bool) -> None:
        """Assert (True) or deassert the line."""


class MsiSink(Protocol):
    """The destination of the message-signalled interrupts of one function, by vector number."""

    def route(self, vector: int, address: int, data: int) -> None:
        """Set the message of `vector`, which is enabled and unmasked, to (address, data)."""

    def trigger(self, vector: int) -> None:
        """Send the message last set by `route`."""


class HostNotifiers(Protocol):
    """The host notifiers of one virtio device: they carry available buffer notifications.

    The transport assigns each live queue the guest-physical address at which the driver notifies
    it; the machine may then catch that write without a register access. Either way the queue is
    served later, by the owner of the notifiers.
    """

    def assign(self, queue: int, gpa: int | None) -> None:
        """Catch 16-bit writes to `gpa` as notifications of `queue`; None catches none."""

    def notify(self, queue: int) -> None:
        """Have `queue` served soon: a notification arrived as a register access."""


class Timer(Protocol):
    """A one-shot timer of a device model, on the guest's virtual clock."""

    @property
    def remaining_ns(self) -> int | None:
        """Nanoseconds until the timer expires, at least 0; None while it is not armed."""

    def arm(self, delay_ns: int) -> None:
        """Expire once, `delay_ns` nanoseconds from now; replaces an earlier deadline."""

    def cancel(self) -> None:
        """Disarm the timer."""


class Timers(Protocol):
    """Creates timers. Their clock stops while the guest is paused, and so do their deadlines.

    A callback runs under the device lock, like every other call of a device model.
    """

    def now_ns(self) -> int:
        """Return the virtual clock: monotonic nanoseconds from an arbitrary origin."""

    def timer(self, on_expiry: Callable[[], None]) -> Timer:
        """Create a timer, not armed, that calls `on_expiry` when it expires."""


class GuestRam(Protocol):
    """Guest RAM as the balloon needs it."""

    @property
    def memory(self) -> GuestMemory:
        """The contents of RAM, by guest-physical address."""

    @property
    def pages(self) -> PageRuns:
        """All RAM, in 4 KiB page frames."""

    @property
    def host_page_pages(self) -> int:
        """The 4 KiB pages of a host page, the unit in which memory can be discarded."""

    def discard(self, runs: PageRuns) -> int:
        """Discard whole host pages; return the bytes discarded. `runs` lie within `pages`."""

    def restore_backing(self, runs: PageRuns) -> None:
        """Back discarded host pages as before the discard, if possible; they are zeros then.

        `runs` are whole host pages that the guest does not use at the moment.
        """


class Tracer(Protocol):
    """Receives named events with small integer or string fields, for logs, recordings and tests.

    Events and their fields are in `pyvmm.trace.kinds`. A frequent one is emitted only while
    events are read, so that it costs one test otherwise:

        if tracer.watched:
            tracer.event("balloon.status", before=0, status=1)
    """

    @property
    def watched(self) -> bool:
        """True while frequent events are read."""

    @property
    def native(self) -> EventBuffer | None:
        """The buffer to which native code emits events; None if they cannot be read."""

    @property
    def quiet(self) -> Tracer | None:
        """The tracer of what is too frequent for a log; None if it cannot be read."""

    def event(self, name: str, **fields: int | str) -> None:
        """Record that `name` happened, with `fields`."""
