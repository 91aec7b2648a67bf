# SPDX-License-Identifier: Apache-2.0
"""Failures of sockets; each message is one line without a full stop.

Reasons why an address cannot be used or a connection cannot be made are `UserError`. The others
occur on existing connections and listeners, and the caller handles them.
"""

from __future__ import annotations

from pathlib import Path

from pyvmm.errors import UserError


class SocketPathTooLong(UserError):
    """The path does not fit into `struct sockaddr_un`."""


class SocketNotCreated(UserError):
    """The socket file cannot be created at its path."""


class AddressUnavailable(UserError):
    """Something else uses the address, or this host does not have it."""


class ControlSocketUnreachable(UserError):
    """No server listens on the control socket at `path`."""

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path


class TlsFilesUnusable(UserError):
    """The CA, the certificate or the key cannot be loaded."""


class TlsKeyEncrypted(UserError):
    """The private key is encrypted, which is not supported: a VMM cannot ask for a passphrase."""


class TlsOnUnixSocket(UserError):
    """TLS was requested for a unix socket."""


class TlsRequired(UserError):
    """The address is not on this host and the connection would not be encrypted."""


class PeerUntrusted(UserError):
    """The TLS handshake with the destination failed."""


class ConnectionLost(Exception):
    """An established connection failed."""


class TransferTimedOut(ConnectionLost):
    """The deadline of a link passed before the peer had sent, or taken, the next bytes."""


class HandshakeFailed(Exception):
    """TLS could not be agreed on, or the peer's certificate is not trusted."""


def reason(error: OSError) -> str:
    """Return the cause of `error`, OpenSSL's included, worded for the middle of a sentence."""
    tls = getattr(error, "verify_message", "") or getattr(error, "reason", "")
    return str(tls or error.strerror or error).lower()
