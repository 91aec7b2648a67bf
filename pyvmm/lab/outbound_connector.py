# SPDX-License-Identifier: Apache-2.0
"""Connections that a command in the lab asks for, made outside without holding up the session.

Looking up a name and connecting both wait, so each request has a thread of its own, which does just
what would be done without the lab and so fails in the same words. Threads are daemons and few: one
that still waits when the session ends keeps nobody.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Iterator
from typing import NamedTuple

MAX_DIALS = 16


class Connected(NamedTuple):
    """What came of a request: a connection, or why there is none."""

    number: int
    stream: socket.socket | None
    refused: str = ""


class OutboundConnector:
    """Makes connections; readable (`fileno`) when one is there, or is not to be had."""

    def __init__(self) -> None:
        self._results: queue.SimpleQueue[Connected] = queue.SimpleQueue()
        self._bell, self._ring = socket.socketpair()
        self._bell.setblocking(False)
        self._waiting = 0

    def fileno(self) -> int:
        """To wait for."""
        return self._bell.fileno()

    def dial(self, number: int, address: str) -> None:
        """Connect to `address`, a migration address, for channel `number`."""
        self._waiting += 1
        if self._waiting > MAX_DIALS:
            self._finish(Connected(number, None, "too many connections are being made"))
            return
        name = f"dial {address[:40]}"
        threading.Thread(target=self._dial, args=(number, address), name=name, daemon=True).start()

    def results(self) -> Iterator[Connected]:
        """What has come since."""
        with contextlib.suppress(BlockingIOError):
            self._bell.recv(4096)
        while True:
            try:
                result = self._results.get_nowait()
            except queue.Empty:
                return
            self._waiting -= 1
            yield result

    def close(self) -> None:
        """Ask no more; connections that come later are closed."""
        self._bell.close()
        self._ring.close()

    def _dial(self, number: int, text: str) -> None:
        from pyvmm.errors import UserError
        from pyvmm.sockets.transport import dial, parse_migration_address, reason

        try:
            stream = dial(parse_migration_address(text))
        except OSError as error:
            self._finish(Connected(number, None, reason(error)))
        except UserError as error:
            self._finish(Connected(number, None, str(error)))
        except BaseException as error:
            self._finish(Connected(number, None, f"pyvmm has a bug: {error!r}"))
            raise
        else:
            stream.settimeout(None)
            self._finish(Connected(number, stream))

    def _finish(self, result: Connected) -> None:
        self._results.put(result)
        with contextlib.suppress(OSError):  # the session has ended
            self._ring.send(b"x")
