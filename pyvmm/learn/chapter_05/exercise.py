# SPDX-License-Identifier: Apache-2.0
"""Exercise of chapter 5: a driver that sleeps although a message waits for it.

It handles each message that it finds. Rarely, a message stays in the used ring until the next one
arrives; if none does, it stays there. Find the moment at which that happens, and mend
`on_interrupt`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Queue(Protocol):
    """The driver's side of a virtqueue, in which the device returns messages."""

    def suppress_interrupts(self) -> None:
        """Set VIRTQ_AVAIL_F_NO_INTERRUPT: the device need not interrupt (2.7.7)."""

    def allow_interrupts(self) -> None:
        """Clear VIRTQ_AVAIL_F_NO_INTERRUPT: the device interrupts when it returns a buffer."""

    def has_used(self) -> bool:
        """Return whether the used ring has a buffer that was not taken."""

    def take_used(self) -> list[bytes]:
        """Take all buffers that the used ring has; return the messages in them."""


class Receiver:
    """Gives each message that arrives in `queue` to `handle`.

    Interrupts are suppressed while it works: under load, the next message is there before the last
    one is handled, and needs no interrupt.
    """

    def __init__(self, queue: Queue, handle: Callable[[bytes], None]) -> None:
        self.queue = queue
        self.handle = handle

    def on_interrupt(self) -> None:
        """Handle all messages; called by the device's interrupt, once for each."""
        self.queue.suppress_interrupts()
        self.drain()
        self.queue.allow_interrupts()

    def drain(self) -> None:
        """Handle messages until the used ring has none."""
        while messages := self.queue.take_used():
            for message in messages:
                self.handle(message)
