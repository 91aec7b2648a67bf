# SPDX-License-Identifier: Apache-2.0
"""The console's bytes on their way from the guest's OUT to whoever shows them.

A guest that prints does, for every character, one read of the UART's line status register (LSR) and
one write to its transmitter holding register (THR); with a verbose kernel that is 19 of 20 exits of
a boot. Nearly always neither needs anybody's opinion: LSR reads as it did before, and the character
joins those that are waiting. `SerialShortcut` does just these two in the KVM_RUN loop, without
Python, the GIL or the device lock, whenever the UART's model has said that it may. Everything else,
the first character of a batch and one more than the queue's limit among it, goes to the model.
What is served here is not traced, and a UART never was.

Both ways of writing end in the same `ByteQueue`, so characters stay in order.
"""

from collections.abc import Callable

EVERY: int
"""For `SerialShortcut.plain_writes`: all writes, until further notice."""

class ByteQueue:
    """Bytes from any number of threads to one that takes them all at once, in order.

    `on_first()` is called by `put`, on its thread, when it made an empty queue a non-empty one.
    `limit_bytes` is where the shortcut stops; `put` takes any number.
    """

    def __init__(self, on_first: Callable[[], None], limit_bytes: int) -> None: ...
    def __len__(self) -> int: ...
    def put(self, data: bytes) -> None:
        """Append `data`."""

    def take(self) -> bytes:
        """Remove and return everything."""

    def close(self) -> None:
        """Forget everything, now and in future: nobody will take it."""

class SerialShortcut:
    """Two registers of the UART at I/O port `port`; characters go to `queue`.

    The UART's model says what may be served; each of its settings is in force at once, for all
    threads. An access served here is one that happened before or after what the model does at the
    same time.
    """

    line_status: int | None
    """What LSR reads as, a byte, while reading it changes nothing but `plain_writes`; None: ask."""
    plain_writes: int
    """Writes to THR that are still to be only a character for the queue, or `EVERY`.

    A read of LSR ends them, unless they are `EVERY`.
    """

    def __init__(self, queue: ByteQueue, port: int) -> None: ...
    def take_plain_write(self) -> bool:
        """For the model, when a write to THR came to it: count one plain write, if any is left."""

    def read(self, offset: int) -> int | None:
        """What the KVM_RUN loop does for a one-byte IN at register `offset`; None: ask the model."""

    def write(self, offset: int, value: int) -> bool:
        """What it does for a one-byte OUT; False: the model has to do it, nothing has happened."""
