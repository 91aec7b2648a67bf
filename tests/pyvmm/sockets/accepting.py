# SPDX-License-Identifier: Apache-2.0
"""Accept one connection at a `MigrationListener`, as a destination does, for tests of sockets."""

from __future__ import annotations

import select

from pyvmm.sockets.link import SocketLink
from pyvmm.sockets.listener import MigrationListener

HANDSHAKE_S = 20.0


def accept_connection(listener: MigrationListener, handshake_s: float = HANDSHAKE_S) -> SocketLink:
    """Wait for a connection, authenticate it, stop listening and return its link.

    Raises `HandshakeFailed`, and ValueError or OSError if the listener is closed.
    """
    poll = select.poll()
    sockets = {each.fileno(): each for each in listener.sockets}
    for fd in sockets:
        poll.register(fd, select.POLLIN)
    stream, _ = sockets[poll.poll()[0][0]].accept()
    link = listener.protect(stream, handshake_s)
    listener.close()
    return link
