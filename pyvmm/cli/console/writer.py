# SPDX-License-Identifier: Apache-2.0
"""Console output on its way from vCPU threads to wherever standard output leads.

A guest's output comes on vCPU threads, in the middle of a register access or straight from the
KVM_RUN loop, so it only joins a queue, and a thread of its own writes that out with plain blocking
writes: they suit a terminal, a pipe and a file alike. (Non-blocking mode would not do. It belongs
to the open file, which standard output shares with the shell that started us.) A guest that writes
faster than its reader reads is slowed down by `throttle`, which is called without locks, and
nothing is lost: the KVM_RUN loop adds to the queue only up to `MAX_UNWRITTEN_BYTES`.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable

from pyvmm_native.serial import ByteQueue

MAX_UNWRITTEN_BYTES = 1 << 16
THROTTLE_S = 0.1
_GATHER_S = 0.004  # output of one such moment becomes one write; nobody sees the delay


class ConsoleWriter:
    """Writes what any thread puts into `queue` to `fd`, in order, from a thread of its own.

    `on_lost` is called on that thread, once, if `fd` cannot be written to any more.
    """

    def __init__(self, fd: int, on_lost: Callable[[], None]) -> None:
        self._fd = fd
        self._on_lost = on_lost
        self._changed = threading.Condition()
        self._closing = False
        self.queue = ByteQueue(self._notify, MAX_UNWRITTEN_BYTES)
        self._thread = threading.Thread(target=self._run, name="console output", daemon=True)
        self._thread.start()

    def throttle(self) -> None:
        """Hold up a thread that writes much, while `MAX_UNWRITTEN_BYTES` or more are unwritten.

        Waits `THROTTLE_S` seconds at most, so that a vCPU can always be stopped; a guest that
        writes a byte per call then adds ten bytes a second to what is unwritten. Call it without
        locks.
        """
        if len(self.queue) < MAX_UNWRITTEN_BYTES:
            return
        with self._changed:
            self._changed.wait_for(
                lambda: len(self.queue) < MAX_UNWRITTEN_BYTES or self._closing, THROTTLE_S
            )

    def close(self, timeout_s: float = 1.0) -> None:
        """Write out what is left, for at most `timeout_s` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        while data := self._take():
            if not self._write_out(memoryview(data)):
                self.queue.close()
                self._notify()
                self._on_lost()
                return

    def _take(self) -> bytes:
        """Everything to be written, once there is something; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.queue) or self._closing)
            closing = self._closing
        if not closing:
            time.sleep(_GATHER_S)
        data = self.queue.take()
        self._notify()
        return data

    def _write_out(self, data: memoryview) -> bool:
        """Write all of `data`; False when that cannot be done any more."""
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # somebody else made the open file non-blocking
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()
            except OSError:
                return False
        return True
