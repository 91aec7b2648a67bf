# SPDX-License-Identifier: Apache-2.0
"""Host notifiers: from the guest's store to queue work on the event loop.

Each queue has an eventfd. While the transport has assigned the queue an address, KVM turns a 16-bit
write there into a signal on that eventfd (ioeventfd), and the vCPU continues at once; the event
loop wakes and serves the queue. A queue that one call does not empty is served again after all
other ready events, so no guest can occupy the loop.

The counter of the eventfd tells who has notified: KVM adds 1 for each write of the driver that it
has caught, so more than 1 are notifications that were coalesced; `notify` adds `OWN_NOTIFICATION`.

KVM API: KVM_IOEVENTFD (4.59). VIRTIO 1.2, 4.1.5.2: without NOTIFICATION_DATA the driver writes the
16-bit queue index.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pykvm import abi

if TYPE_CHECKING:
    from devices.ports import Tracer
    from pykvm import Vm
    from pyvmm.machine.event_loop import EventLoop

NOTIFICATION_BYTES = 2
OWN_NOTIFICATION = 1 << 32
"""Added to the eventfd's counter by `notify`, above all writes of the driver in it."""


class IoeventfdNotifiers:
    """The host notifiers of the device called `device`; satisfies `devices.ports.HostNotifiers`.

    `queues` are the names of its queues, by number.
    `held()` is True while the guest is held at an event, and no queue is to be served.
    `serve(queue)` serves a bounded number of buffers and returns True if there may be more.

    Threads: `serve` is called on the event loop only; `assign` and `notify` by any thread that
    holds the device lock; the others on the event loop.
    """

    def __init__(
        self,
        vm: Vm,
        device: str,
        queues: Sequence[str],
        serve: Callable[[int], bool],
        tracer: Tracer,
        held: Callable[[], bool] = lambda: False,
    ) -> None:
        self._vm = vm
        self._device = device
        self._queues = queues
        self._serve = serve
        self._tracer = tracer
        self._held = held
        self._caught = True
        self._addresses: dict[int, int] = {}
        self._loop: EventLoop | None = None
        self._events: list[int] = []
        with ExitStack() as refused:
            refused.callback(self.close)
            for _ in queues:
                self._events.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            refused.pop_all()

    def assign(self, queue: int, gpa: int | None) -> None:
        """Assign as `HostNotifiers.assign`."""
        before = self._addresses.pop(queue, None)
        event = self._events[queue]
        if before is not None and self._caught:
            flags = abi.KVM_IOEVENTFD_FLAG_DEASSIGN
            self._vm.ioeventfd(event, before, NOTIFICATION_BYTES, flags=flags)
        if gpa is not None:
            if self._caught:
                self._vm.ioeventfd(event, gpa, NOTIFICATION_BYTES)
            self._addresses[queue] = gpa

    def set_caught(self, caught: bool) -> None:
        """Let KVM catch notifications, as at first, or leave them to be register accesses.

        Hold the device lock. A write of the driver is either caught or a register access, at any
        moment, so none is lost.
        """
        if caught == self._caught:
            return
        self._caught = caught
        flags = 0 if caught else abi.KVM_IOEVENTFD_FLAG_DEASSIGN
        for queue, gpa in self._addresses.items():
            self._vm.ioeventfd(self._events[queue], gpa, NOTIFICATION_BYTES, flags=flags)

    def notify(self, queue: int) -> None:
        """Notify as `HostNotifiers.notify`."""
        os.eventfd_write(self._events[queue], OWN_NOTIFICATION)

    def start(self, loop: EventLoop) -> None:
        """Serve notified queues on `loop`, including those notified before."""
        self._loop = loop
        for queue, event in enumerate(self._events):
            loop.add_reader(event, self._notified, queue)

    def stop(self) -> None:
        """Leave notifications pending until `start` is called again."""
        if self._loop is not None:
            for event in self._events:
                self._loop.remove_reader(event)
            self._loop = None

    def close(self) -> None:
        """Stop, and close the eventfds."""
        self.stop()
        for event in self._events:
            os.close(event)
        self._events = []

    def _notified(self, queue: int) -> None:
        if self._tracer.watched and self._held():
            return  # it stays readable, and the notifiers are stopped next
        count = os.eventfd_read(self._events[queue])
        if self._tracer.watched:
            self._emit(queue, count)
            if self._held():  # at this event
                os.eventfd_write(self._events[queue], count)
                return
        if self._serve(queue):
            self.notify(queue)

    def _emit(self, queue: int, count: int) -> None:
        own, caught = divmod(count, OWN_NOTIFICATION)
        self._tracer.event(
            f"{self._device}.notified",
            queue=self._queues[queue],
            caught=caught,
            coalesced=int(caught > 1),
            own=own,
        )
