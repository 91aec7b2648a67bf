# SPDX-License-Identifier: Apache-2.0
"""The console writer: a thread that writes the guest's output to standard output.

The output comes on vCPU threads, in a register access or directly from the KVM_RUN loop, which must
not block. So they add it to a queue, and the writer's thread writes it with blocking writes, which
work for a terminal, a pipe and a file alike. (Non-blocking mode would belong to the open file,
which standard output shares with the shell that started pyvmm.) No output is lost: the KVM_RUN loop
adds to the queue up to `MAX_UNWRITTEN_BYTES`, and `throttle` slows down a guest that writes faster
than its output is read.
"""

from __future__ import annotations

import threading
import time

from devices.listeners import Listeners
from pyvmm.blocking.thread_limit import thread_limit_reported
from pyvmm.standard_streams.descriptors import write_all
from pyvmm_native.serial import ByteQueue

MAX_UNWRITTEN_BYTES = 1 << 16
THROTTLE_S = 0.1
_GATHER_S = 0.004  # collect output for this long, then write it at once; not a visible delay


class ConsoleWriter:
    """Writes the bytes that any thread puts into `queue` to `fd`, in order, on its own thread.

    When `fd` can no longer be written to, `error` has the reason.

    Threads: event loop; `queue` any, `throttle` vCPU.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.error: OSError | None = None
        self.lost: Listeners[[]] = Listeners()
        """Called on the writer's thread, once, when `error` has been set."""
        self.room_available: Listeners[[]] = Listeners()
        """Called on the writer's thread when `queue` was emptied, or output is lost."""
        self._changed = threading.Condition()
        self._closing = False
        self.queue = ByteQueue(self._notify, MAX_UNWRITTEN_BYTES)
        self._thread = threading.Thread(target=self._run, name="console-writer", daemon=True)
        with thread_limit_reported():
            self._thread.start()

    def throttle(self) -> None:
        """Block while `MAX_UNWRITTEN_BYTES` or more are unwritten; call it without locks held.

        It returns after `THROTTLE_S` seconds at the latest, so that a vCPU can always be stopped.
        A guest that writes one byte per call can then still add ten bytes a second.
        """
        if len(self.queue) < MAX_UNWRITTEN_BYTES:
            return
        with self._changed:
            self._changed.wait_for(
                lambda: len(self.queue) < MAX_UNWRITTEN_BYTES or self._closing, THROTTLE_S
            )

    def close(self, timeout_s: float = 1.0) -> bool:
        """Write the remaining output, for at most `timeout_s` seconds.

        Return False if some is left. The thread continues to write it as long as the process lives.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        while data := self._take():
            try:
                write_all(self._fd, data)
            except OSError as error:
                self.error = error
                self.queue.close()
                self._notify()
                self.room_available()
                self.lost()
                return

    def _take(self) -> bytes:
        """Wait for output and return all of it; empty when the writer is closed."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.queue) or self._closing)
            closing = self._closing
        if not closing:
            time.sleep(_GATHER_S)
        data = self.queue.take()
        self._notify()
        self.room_available()
        return data
