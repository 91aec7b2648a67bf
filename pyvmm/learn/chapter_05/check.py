# SPDX-License-Identifier: Apache-2.0
"""Check of chapter 5: no message stays behind, wherever it arrives in the driver's work.

The device's side is pyvmm's own, which reads the flag NO_INTERRUPT. The check lets messages arrive
at the worst moment: after the driver has found the used ring empty, and before it allows
interrupts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from devices.testing import DriverQueue, guest_memory
from devices.testing.driver_queue import NO_INTERRUPT
from pyvmm.learn.checking import CheckFailed, expect

SIZE = 64
MAX_LOOKS = 1000


class _Queue:
    """A virtqueue; `late` messages arrive one by one, each just before interrupts are allowed."""

    def __init__(self, late: int, while_working: int) -> None:
        self.driver = DriverQueue(guest_memory(1 << 16), SIZE)
        self.device = self.driver.device_queue()
        for _ in range(SIZE):
            self.driver.add(writable=[16])
        self.late = late
        self.while_working = while_working
        self.sent: list[bytes] = []
        self.interrupts = 0
        self.looks = 0
        self.taken: list[bytes] = []

    def arrive(self) -> None:
        """Return a buffer with a message, as the device; interrupt unless that is suppressed."""
        chain = self.device.pop(0)
        assert chain is not None
        message = b"message %d" % len(self.sent)
        self.device.push(chain, chain.write(message))
        self.sent.append(message)
        if self.device.should_interrupt():
            self.interrupts += 1

    def suppress_interrupts(self) -> None:
        self.driver.set_avail_flags(NO_INTERRUPT)

    def allow_interrupts(self) -> None:
        if self.late and not self.taken:
            self.late -= 1
            self.arrive()
        self.driver.set_avail_flags(0)

    def has_used(self) -> bool:
        self._fetch()
        return bool(self.taken)

    def take_used(self) -> list[bytes]:
        self._fetch()
        taken, self.taken = self.taken, []
        return taken

    def working(self) -> None:
        """Let further messages arrive while the driver handles one."""
        if self.while_working:
            self.while_working -= 1
            self.arrive()

    def _fetch(self) -> None:
        self.looks += 1
        if self.looks > MAX_LOOKS:
            raise CheckFailed(
                f"The driver has looked at the used ring {MAX_LOOKS} times in one interrupt, in"
                " which nothing more arrives: it returns when the ring is empty."
            )
        self.taken += [used.data for used in self.driver.take_used()]


def check(exercise: Any) -> None:
    """Check `Receiver` of the module `exercise`."""
    _check(exercise, late=0, while_working=0)
    _check(exercise, late=0, while_working=20)
    for late in (1, 2, 5):
        _check(exercise, late=late, while_working=0)


def _check(exercise: Any, late: int, while_working: int) -> None:
    queue = _Queue(late, while_working)
    handled: list[bytes] = []
    receiver = exercise.Receiver(queue, _handler(queue, handled))
    queue.arrive()
    expect(queue.interrupts == 1, "The device does not interrupt, though nothing suppresses it.")
    while queue.interrupts:
        queue.interrupts -= 1
        queue.looks = 0
        receiver.on_interrupt()
        expect(
            queue.interrupts <= 1,
            f"While the driver handled one interrupt, the device sent {queue.interrupts} more, for"
            " messages that the driver found without them. Suppress interrupts while the used"
            " ring is read (VIRTIO 1.2, 2.7.7): each costs more than the message.",
        )
    lost = [message.decode() for message in queue.sent if message not in handled]
    expect(
        not lost,
        f"The driver has returned from its last interrupt, and {', '.join(lost)} is in the used"
        " ring. It arrived after the driver had found the ring empty, while interrupts were still"
        " suppressed, so the device sent none. Nothing wakes the driver now. What has to be true"
        " at the moment at which it returns? (VIRTIO 1.2, 2.7.14)",
    )
    expect(
        handled == queue.sent,
        f"{len(queue.sent)} messages have arrived, and {len(handled)} were handled: each is to be"
        " handled once, in order.",
    )


def _handler(queue: _Queue, handled: list[bytes]) -> Callable[[bytes], None]:
    def handle(message: bytes) -> None:
        handled.append(message)
        queue.working()

    return handle
