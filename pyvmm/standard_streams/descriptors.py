# SPDX-License-Identifier: Apache-2.0
"""Descriptors 0 to 2: open all of them at the start of a process, and write to them.

A process that starts with one of them closed would give its number to the next file or socket that
it opens: messages would be written into a guest's disk or a protocol, and a protocol's bytes would
be read as input. So each process of pyvmm calls `open_missing_descriptors` before it opens
anything, and what was closed then reads as empty and discards what is written to it.

Non-blocking mode belongs to the open file, which others share: a program that sets it on its own
standard input sets it on our standard output too, if both are one terminal or pipe. So EAGAIN is no
error here: `write_all` waits, and `wait_for_readers` makes Python's streams wait.
"""

from __future__ import annotations

import io
import os
import select
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def open_missing_descriptors() -> None:
    """Open `/dev/null` on those of descriptors 0 to 2 that are closed.

    `sys.stdin`, `sys.stdout` and `sys.stderr`, which are None where Python found a descriptor
    closed, become files that use it.
    """
    for fd, (name, mode) in enumerate(_STREAMS):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            assert null == fd, "the lowest descriptor was closed, and another thread has opened it"
            os.set_inheritable(null, True)
        if getattr(sys, name) is None:
            stream = open(fd, mode, closefd=False, errors="backslashreplace")  # noqa: SIM115
            setattr(sys, name, stream)


def discard_output(fd: int) -> None:
    """Make `fd` discard what is written to it, so that a flush at exit cannot fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, fd)
    os.close(null)


class _WaitingOutput(io.RawIOBase):
    """Output to `fd` that waits for its reader."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:
        write_all(self._fd, data)
        return len(memoryview(data))


def wait_for_readers() -> None:
    """Make `sys.stdout` and `sys.stderr` wait where their open file is non-blocking.

    Python's own streams raise BlockingIOError there and lose output.
    """
    for fd, name in ((1, "stdout"), (2, "stderr")):
        if not os.get_blocking(fd):
            former = getattr(sys, name)
            waiting = io.TextIOWrapper(
                io.BufferedWriter(_WaitingOutput(fd)),
                former.encoding,
                former.errors,
                line_buffering=former.line_buffering,
            )
            setattr(sys, name, waiting)


def write_all(fd: int, data: Buffer) -> None:
    """Write all of `data` to `fd`, which may be non-blocking, waiting as long as it takes.

    Raises OSError when `fd` can no longer be written to.
    """
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            poller = select.poll()
            poller.register(fd, select.POLLOUT)
            poller.poll()
