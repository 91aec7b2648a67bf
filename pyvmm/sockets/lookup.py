# SPDX-License-Identifier: Apache-2.0
"""Look up host names, and wait for the name servers only until a deadline.

getaddrinfo(3) cannot be interrupted, and with an unresponsive name server it takes as long as
resolv.conf(5) says, for each server and search domain.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

from pyvmm.blocking.deadline import call_within

LOOKUP_TIMEOUT_S = 10.0


def look_up(host: str, port: int, flags: int = 0) -> list[Any]:
    """Return the results of getaddrinfo(3) for a TCP connection.

    Raises OSError, also when the name servers take too long, and UnicodeError for an impossible
    name.
    """
    try:
        return call_within(
            LOOKUP_TIMEOUT_S,
            "look-up",
            lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags),
        )
    except TimeoutError as error:
        raise OSError(
            errno.ETIMEDOUT, f"the name servers have not answered within {LOOKUP_TIMEOUT_S:g} s"
        ) from error
