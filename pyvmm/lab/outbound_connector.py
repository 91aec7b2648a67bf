# SPDX-License-Identifier: Apache-2.0
"""Connect to sockets on the host for commands in the lab, without blocking the session.

Name lookup and connecting block, so each request has a thread of its own, which does exactly what
the command would do without the lab and so fails with the same messages. The threads are daemons
and limited in number; one that is still connecting when the session ends does not keep the process
alive.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Iterator
from typing import NamedTuple

from pyvmm.blocking.signal_mask import blocked_signals
from pyvmm.blocking.thread_limit import thread_limit_reported
from pyvmm.errors import ThreadNotStarted
from pyvmm.lab.signals import TAKEN

MAX_PENDING = 16


class ConnectResult(NamedTuple):
    """The result of a request: a connection, or else an error message."""

    channel: int
    stream: socket.socket | None
    error: str = ""


class OutboundConnector:
    """Makes connections; its `fileno` is readable when there are results."""

    def __init__(self) -> None:
        self._results: queue.SimpleQueue[ConnectResult] = queue.SimpleQueue()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._pending = 0

    def fileno(self) -> int:
        """Return the descriptor to poll for input."""
        return self._wake_reader.fileno()

    def connect(self, channel: int, address: str) -> None:
        """Connect `channel` to `address`, a migration address; `results` yields the result."""
        self._pending += 1
        if self._pending > MAX_PENDING:
            self._finish(ConnectResult(channel, None, "too many connections are being made"))
            return
        thread = threading.Thread(
            target=self._connect,
            args=(channel, address),
            name=f"connect {address[:40]}",
            daemon=True,
        )
        try:
            with blocked_signals(TAKEN), thread_limit_reported():
                thread.start()
        except ThreadNotStarted as error:
            self._finish(ConnectResult(channel, None, str(error)))

    def results(self) -> Iterator[ConnectResult]:
        """Yield the results that are ready."""
        with contextlib.suppress(BlockingIOError):
            self._wake_reader.recv(4096)
        while True:
            try:
                result = self._results.get_nowait()
            except queue.Empty:
                return
            self._pending -= 1
            yield result

    def close(self) -> None:
        """Stop; later results are dropped, which closes their connections."""
        self._wake_reader.close()
        self._wake_writer.close()

    def _connect(self, channel: int, text: str) -> None:
        # Saves 7 ms (ssl) for commands that connect to nothing.
        from pyvmm.errors import UserError
        from pyvmm.sockets.addresses import parse_migration_address
        from pyvmm.sockets.connect import connect_directly
        from pyvmm.sockets.errors import reason

        try:
            stream = connect_directly(parse_migration_address(text))
        except OSError as error:
            self._finish(ConnectResult(channel, None, reason(error)))
        except UserError as error:
            self._finish(ConnectResult(channel, None, str(error)))
        except BaseException as error:
            self._finish(ConnectResult(channel, None, f"pyvmm has a bug: {error!r}"))
            raise
        else:
            stream.settimeout(None)
            self._finish(ConnectResult(channel, stream))

    def _finish(self, result: ConnectResult) -> None:
        self._results.put(result)
        with contextlib.suppress(OSError):  # the session has ended
            self._wake_writer.send(b"x")
