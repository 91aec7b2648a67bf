# SPDX-License-Identifier: Apache-2.0
"""A `pyvmm run` on a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

TIMEOUT_S = 150.0


class Terminal:
    """A pseudo-terminal that is the terminal of a pyvmm process."""

    def __init__(self, master: int, slave: int, process: subprocess.Popen[bytes]) -> None:
        self.master, self.slave, self.process = master, slave, process
        self.output = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        """Set the window size, and tell the process, which has another controlling terminal."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def expect(self, text: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while text not in self.output:
            ready, _, _ = select.select([self.master], [], [], deadline - time.monotonic())
            assert ready, f"no {text!r} in:\n{self.output}"
            self.output += os.read(self.master, 4096).decode(errors="replace")
        self.output = self.output[self.output.index(text) + len(text) :]


@contextmanager
def pyvmm_run(*arguments: str, rows: int = 24, columns: int = 80) -> Iterator[Terminal]:
    """Run `pyvmm run` on a terminal of this size for the length of the block."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    command = [sys.executable, "-m", "pyvmm", "run", *arguments]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave)
    try:
        yield Terminal(master, slave, process)
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)
