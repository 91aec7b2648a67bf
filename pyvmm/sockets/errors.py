# SPDX-License-Identifier: Apache-2.0
"""Failures of sockets that the code above handles; each message is one line without a full stop.

A reason that a connection cannot be made at all is a `UserError`; these are for later.
"""

from __future__ import annotations


class ConnectionLost(Exception):
    """An established connection failed, or the peer sent nothing for too long."""


class HandshakeFailed(Exception):
    """TLS could not be agreed on, or the peer's certificate is not trusted."""


class ListenerClosed(Exception):
    """The listener was closed before a peer connected."""


def reason(error: OSError) -> str:
    """Return the cause of `error`, OpenSSL's included, worded for the middle of a sentence."""
    tls = getattr(error, "verify_message", "") or getattr(error, "reason", "")
    return str(tls or error.strerror or error).lower()
