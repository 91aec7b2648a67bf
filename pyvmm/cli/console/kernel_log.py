# SPDX-License-Identifier: Apache-2.0
"""The serial console as the kernel's log, while a command has this process's streams.

The log is written to a file, if one is named. Its end is kept: it says why a guest has failed.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm.cli.console.output_file import open_for_appending
from pyvmm.console.writer import MAX_UNWRITTEN_BYTES, ConsoleWriter
from pyvmm.standard_streams.text import print_message
from pyvmm_native.serial import ByteQueue

if TYPE_CHECKING:
    from pyvmm.cli.late_loop import LateLoop

KEPT_BYTES = 16 << 10
PRINTED_LINES = 20
STANDARD_ERROR = Path("-")


class KernelLog:
    """The log of one guest, written to `path` or, without one, kept only.

    `queue` takes the console's output; `throttle` is called on vCPU threads and may block. Raises
    `CommandError` if the file cannot be written.

    Threads: event loop; `queue` any, `throttle` vCPU.
    """

    def __init__(self, loop: LateLoop, path: Path | None) -> None:
        self._loop = loop
        self._kept = bytearray()
        self._writer: ConsoleWriter | None = None
        self._path = path
        self._fd = -1
        if path is None:
            self.queue = ByteQueue(self._wake, MAX_UNWRITTEN_BYTES)
            self.throttle = lambda: None
        else:
            self._fd = open_log(path)
            self._writer = ConsoleWriter(self._fd)
            self._writer.lost.add(self._report_lost)
            self.queue = self._writer.queue
            self.throttle = self._writer.throttle

    def print_tail(self) -> None:
        """Print the end of the log on standard error output, unless that or a file has it."""
        if self._writer is not None:
            if self._path != STANDARD_ERROR:
                print_message(f"see the kernel's log, {self._path}")
            return
        self._collect()
        lines = self._kept.decode("utf-8", "replace").replace("\r", "").splitlines()
        for line in lines[-PRINTED_LINES:]:
            print_message(line, program="guest: ")

    def close(self) -> None:
        """Write what has not been written yet."""
        if self._writer is not None:
            self._writer.close()
        close_log(self._fd)
        self._fd = -1

    def _report_lost(self) -> None:
        """Say, once, that the rest of the log is not written; the command runs on."""
        if self._writer is not None and self._path != STANDARD_ERROR:
            reason = self._writer.error and self._writer.error.strerror
            print_message(f"the kernel's log cannot be written to {self._path}: {reason}")

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the VM
            self._loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        self._kept += self.queue.take()
        del self._kept[:-KEPT_BYTES]


def open_log(path: Path) -> int:
    """Return a descriptor to append to the log at `path`. Raises `CommandError`."""
    if path == STANDARD_ERROR:
        return 2
    return open_for_appending(path, "--log")


def close_log(fd: int) -> None:
    """Close a descriptor of `open_log`."""
    if fd > 2:
        os.close(fd)
