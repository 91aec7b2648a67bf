# SPDX-License-Identifier: Apache-2.0
"""The caller's standard streams, which must never be made non-blocking.

A terminal, a pipe or a file on descriptors 0 to 2 is shared with the shell and with other
programs; switching it to non-blocking would break them. So one thread per stream copies, with
plain blocking calls, between it and a socket pair whose other end goes into the multiplexer. The
threads are daemons: one that is stuck writing to a pipe nobody reads does not keep us alive.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import termios
import threading
import tty
from collections.abc import Iterator

_CHUNK_BYTES = 64 * 1024


class InputCopier:
    """Copies a descriptor to `end`, a socket for the multiplexer, until it ends or `stop`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._inner, self.end = socket.socketpair()
        self._stop_reader, self._stop_writer = os.pipe()
        threading.Thread(target=self._copy, name=f"stdin copier {fd}", daemon=True).start()

    def stop(self) -> None:
        """Take no more input; what the terminal still holds is left for whoever reads next."""
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
                data = os.read(self._fd, _CHUNK_BYTES)
                if not data:
                    self._inner.shutdown(socket.SHUT_WR)
                    return
                self._inner.sendall(data)


class OutputCopier:
    """Copies what arrives at `end` to a descriptor; a broken pipe there closes `end`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._inner, self.end = socket.socketpair()
        self._thread = threading.Thread(target=self._copy, name=f"output copier {fd}", daemon=True)
        self._thread.start()

    def finished(self) -> bool:
        """Everything up to the end of the stream has been written (or can not be)."""
        return not self._thread.is_alive()

    def join(self, timeout_seconds: float) -> None:
        """Wait for `finished`; interruptible by signals."""
        self._thread.join(timeout_seconds)

    def _copy(self) -> None:
        with self._inner, contextlib.suppress(OSError):
            while data := self._inner.recv(_CHUNK_BYTES):
                view = memoryview(data)
                while view:
                    view = view[os.write(self._fd, view) :]


def in_foreground(fd: int) -> bool:
    """`fd` is a terminal that this process may read and change without being stopped."""
    try:
        return os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False


@contextlib.contextmanager
def raw_terminal(fd: int | None) -> Iterator[None]:
    """Raw mode while the command runs, because the terminal the command sees is in the lab."""
    if fd is None:
        yield
        return
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
