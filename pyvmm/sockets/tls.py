# SPDX-License-Identifier: Apache-2.0
"""Protection of a connection: TLS 1.3 with certificates on both sides.

Guest memory holds all of the guest's secrets, and a peer that connects to a waiting destination can
make it run any guest. So a TCP connection to another host requires TLS, in which each side presents
a certificate signed by the other's CA (the source also checks the destination's host name), unless
the user has waived it. A unix socket is protected by its file mode, which admits its owner only.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pyvmm.errors import UserError
from pyvmm.files.regular import open_regular
from pyvmm.sockets.addresses import Address, TcpAddress, UnixAddress
from pyvmm.sockets.errors import (
    HandshakeFailed,
    TlsFilesUnusable,
    TlsKeyEncrypted,
    TlsOnUnixSocket,
    TlsRequired,
    reason,
)
from pyvmm.sockets.lab_paths import host_cannot_see, in_lab, lab_directory
from pyvmm.sockets.lookup import look_up


@dataclass(frozen=True)
class TlsFiles:
    """PEM files: the CA to trust, our certificate, and its key."""

    ca: Path
    certificate: Path
    key: Path

    def context(self, *, server: bool) -> ssl.SSLContext:
        """Return the TLS context of one side; raise `TlsFilesUnusable`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            for path in (self.ca, self.certificate, self.key):
                _check_shared(path)
                os.close(open_regular(path))  # OpenSSL would wait for a pipe without end
            context.load_verify_locations(self.ca)
            context.load_cert_chain(self.certificate, self.key, self._refuse_encryption)
        except (OSError, ssl.SSLError) as error:
            raise TlsFilesUnusable(
                f"the TLS files cannot be used: {error.strerror or error}"
            ) from error
        return context

    def _refuse_encryption(self) -> NoReturn:
        """Stand for OpenSSL's prompt, which would read the guest's console."""
        raise TlsKeyEncrypted(f"the TLS key {self.key} is encrypted with a passphrase")


@dataclass(frozen=True)
class Security:
    """The protection of a connection."""

    tls: TlsFiles | None = None
    insecure: bool = False
    """Use a network without protection."""

    def check(self, address: Address) -> None:
        """Raise `UserError` if guest memory would cross a network unprotected."""
        if self.tls is not None:
            if isinstance(address, UnixAddress):
                raise TlsOnUnixSocket("TLS is not supported on a unix socket")
        elif isinstance(address, TcpAddress) and not self.insecure and not _is_local(address):
            raise TlsRequired(f"{address} is not on this host, and there is no TLS")


def handshake(stream: socket.socket, context: ssl.SSLContext, host: str | None) -> ssl.SSLSocket:
    """Return `stream` with TLS on top, as a client of `host` or, if that is None, as a server.

    The time-out of `stream` limits the whole handshake. Closes `stream` and raises
    `HandshakeFailed` on failure.
    """
    try:
        wrapped = context.wrap_socket(
            stream, server_side=host is None, server_hostname=host, do_handshake_on_connect=False
        )
        stream = wrapped
        wrapped.do_handshake()
    except OSError as error:
        stream.close()
        raise HandshakeFailed(f"TLS failed: {reason(error)}") from error
    return wrapped


def _check_shared(path: Path) -> None:
    """Raise `TlsFilesUnusable` for a file of the host that a guest in the lab cannot read."""
    if host_cannot_see(path):
        raise TlsFilesUnusable(
            f"the TLS files cannot be used: the lab, in which the guest runs, does not share"
            f" {lab_directory(path)} with the host, so not {path}"
        )


def _is_local(address: TcpAddress) -> bool:
    """Return True if every address of the host is a loopback address."""
    try:
        found = look_up(address.host, address.port)
    except UnicodeError as error:
        raise UserError(f"there is no host {address.host!r}") from error
    except OSError as error:
        if in_lab():
            return False  # names are looked up outside; the lab knows only /etc/hosts
        raise UserError(f"there is no host {address.host!r}: {reason(error)}") from error
    return all(ipaddress.ip_address(str(entry[4][0])).is_loopback for entry in found)
