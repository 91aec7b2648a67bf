# SPDX-License-Identifier: Apache-2.0
"""Copy the caller's standard streams, which must never become non-blocking.

A terminal, a pipe or a file on descriptors 0 to 2 is shared with the shell and other programs,
which a switch to non-blocking would break. So one thread per stream copies, waiting for the stream
itself, between it and a socket pair whose other end belongs to the multiplexer. One of those
programs may have made the stream non-blocking, so EAGAIN is not the end of it. The threads are
daemons: one that is blocked in a write to a pipe without a reader does not keep the process alive.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import termios
import threading
import tty
from collections.abc import Callable, Iterator

from pyvmm.blocking.thread_limit import thread_limit_reported
from pyvmm.standard_streams.descriptors import write_all

_CHUNK_BYTES = 64 * 1024
_WRITE_BYTES = select.PIPE_BUF
"""Bytes of one write, so that a slow reader is not taken for one that has stopped."""


class InputCopier:
    """Copies `fd` to `end`, a socket for the multiplexer, until end of file or `stop`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._inner, self.end = socket.socketpair()
        self._stop_reader, self._stop_writer = os.pipe()
        with thread_limit_reported():
            threading.Thread(target=self._copy, name=f"stdin copier {fd}", daemon=True).start()

    def stop(self) -> None:
        """Read no more; input that the terminal still holds is left for its next reader."""
        os.write(self._stop_writer, b"x")

    def _copy(self) -> None:
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        poller.register(self._stop_reader, select.POLLIN)
        with self._inner, contextlib.suppress(OSError):
            while True:
                ready = dict(poller.poll())
                if self._stop_reader in ready:
                    return
                try:
                    data = os.read(self._fd, _CHUNK_BYTES)
                except BlockingIOError:  # another reader was faster
                    continue
                if not data:
                    self._inner.shutdown(socket.SHUT_WR)
                    return
                self._inner.sendall(data)


class OutputCopier:
    """Copies `end`, a socket for the multiplexer, to `fd`; an error there closes `end`."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.error: OSError | None = None
        """The error for which the rest of the stream was dropped."""
        self.written_bytes = 0
        self._inner, self.end = socket.socketpair()
        self._thread = threading.Thread(target=self._copy, name=f"output copier {fd}", daemon=True)
        with thread_limit_reported():
            self._thread.start()

    def finished(self) -> bool:
        """Return True when the whole stream has been written, or can no longer be."""
        return not self._thread.is_alive()

    def _copy(self) -> None:
        with self._inner, contextlib.suppress(ConnectionResetError):
            while data := self._inner.recv(_CHUNK_BYTES):
                try:
                    self._write(data)
                except OSError as error:
                    self.error = error
                    return

    def _write(self, data: bytes) -> None:
        for at in range(0, len(data), _WRITE_BYTES):
            part = data[at : at + _WRITE_BYTES]
            write_all(self.fd, part)
            self.written_bytes += len(part)


def in_foreground(fd: int) -> bool:
    """Return True if `fd` is a terminal that this process may read without being stopped."""
    try:
        return os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False


@contextlib.contextmanager
def raw_terminal(fd: int | None) -> Iterator[Callable[[], None]]:
    """Put terminal `fd` in raw mode for the block: the lab's pty has the line discipline.

    Yield a function that any thread may call to restore it before.
    """
    if fd is None:
        yield lambda: None
        return
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSADRAIN)
    try:
        yield lambda: termios.tcsetattr(fd, termios.TCSANOW, before)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
