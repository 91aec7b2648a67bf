# SPDX-License-Identifier: Apache-2.0
"""Accept connections for an event loop, also when the process has no descriptors left.

A connection that cannot be accepted stays in the backlog, and its listener stays readable: a loop
that ignores the error would use all of a processor, and one that logs it would fill a disk. So
an `Acceptor` keeps one descriptor in reserve, with which it accepts such a connection and closes
it: the client is disconnected.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket

from pyvmm.errors import TOO_MANY_FILES

_log = logging.getLogger(__name__)


class Acceptor:
    """Accepts clients of `listener`, a non-blocking socket; `name` is that of a client in the log.

    A row of refused clients is logged once.
    """

    def __init__(self, listener: socket.socket, name: str) -> None:
        self._listener = listener
        self._name = name
        self._reserve = os.open(os.devnull, os.O_RDONLY)
        self._refusing = False

    def accept(self, clients: int, limit: int) -> socket.socket | None:
        """Return the next client, of which there are `clients` already.

        Return None, with the client disconnected, if these are `limit` or if no descriptor is
        left, and None if no client waits.
        """
        try:
            client, _ = self._listener.accept()
        except OSError as error:
            if error.errno in TOO_MANY_FILES:
                self._disconnect_next()
                self._refuse(f"no descriptors are left ({error.strerror})")
            return None
        if clients >= limit:
            client.close()
            self._refuse(f"there are {limit} already, which is the limit")
            return None
        self._refusing = False
        return client

    def close(self) -> None:
        """Close the descriptor in reserve; the listener stays the caller's."""
        os.close(self._reserve)

    def _disconnect_next(self) -> None:
        os.close(self._reserve)
        with contextlib.suppress(OSError):
            self._listener.accept()[0].close()
        self._reserve = os.open(os.devnull, os.O_RDONLY)

    def _refuse(self, reason: str) -> None:
        if not self._refusing:
            _log.warning("a %s was disconnected: %s", self._name, reason)
        self._refusing = True
