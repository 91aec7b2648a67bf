# SPDX-License-Identifier: Apache-2.0
"""Connections for migrations: `tcp:HOST:PORT` or `unix:PATH`, with TLS if files for it are given.

A guest's memory holds all of its secrets, and whoever can reach a waiting destination can make it
run anything. So tcp goes beyond this host only with TLS, in which each side shows a certificate
that the other's CA has signed (TLS 1.3; the source also checks the destination's host name), or
where somebody has said that it need not. A unix socket is its owner's only.

In the lab an address is one of the machine outside. A listener there is listened for outside
(`pyvmm.lab.run`), and what cannot be reached in the lab is connected to from outside; TLS goes
through both to its end.

A `Link` blocks, in the thread that uses it, for at most `IDLE_TIMEOUT_S` without a byte moving.
Only `abort` may be called from another thread. Every failure of a connection that exists is a
`LinkBroken`; what stands in the way of having one is a `UserError`.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import select
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm.errors import UserError
from pyvmm.migration.errors import LinkBroken, MigrationError
from pyvmm.sockets.lab_paths import IncomingSocket, in_lab, incoming_socket, proxy_socket
from pyvmm.sockets.unix import Listener, parse_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

IDLE_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 10.0
_RECEIVE_BYTES = 1 << 18
"""At once: memory for more would be new to the process each time, a page fault for each page."""
_SEND_BUFFER_BYTES = 4 << 20
"""Asked of the kernel for unix sockets, which gives as much as it may: fewer, longer turns."""
_log = logging.getLogger(__name__)
_EXAMPLES = "write tcp:HOST:PORT, e.g. tcp:127.0.0.1:4444, or unix:PATH"


@dataclass(frozen=True)
class TcpAddress:
    """`port` 0 lets the system choose, for listening."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"


@dataclass(frozen=True)
class UnixAddress:
    """A socket file."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress


@dataclass(frozen=True)
class TlsFiles:
    """PEM files: who is trusted, who we are, and the key that proves it."""

    ca: Path
    certificate: Path
    key: Path

    def context(self, *, server: bool) -> ssl.SSLContext:
        """What a side needs; raises `UserError` for files that cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(self.ca)
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise UserError(
                f"the files for TLS cannot be used: {error.strerror or error}",
                "give PEM files: a CA, a certificate signed by it, and its key",
            ) from error
        return context


@dataclass(frozen=True)
class Security:
    """How a connection is protected."""

    tls: TlsFiles | None = None
    insecure: bool = False
    """Go over a network without protection."""

    def check(self, address: Address) -> None:
        """Raises `UserError` where the guest's memory would be there for all to see."""
        if self.tls is not None:
            if isinstance(address, UnixAddress):
                raise UserError("a unix socket takes no TLS", "leave the --tls options out")
        elif isinstance(address, TcpAddress) and not self.insecure and not _is_local(address):
            raise UserError(
                f"{address} is not on this host, and there is no TLS",
                "give --tls-ca, --tls-cert and --tls-key, or --insecure in a network you trust",
            )


def parse_migration_address(text: str) -> Address:
    """The address in `tcp:HOST:PORT`, `tcp:[IPV6]:PORT` or `unix:PATH`. Raises `UserError`."""
    scheme, _, rest = text.partition(":")
    if scheme == "unix":
        if not rest or "," in rest:
            raise UserError(f"{text!r} is not an address", _EXAMPLES)
        return UnixAddress(parse_address(text))
    host, _, port = rest.rpartition(":")
    if host[:1] == "[" and host[-1:] == "]":
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if scheme != "tcp" or not host or not (port.isascii() and port.isdigit() and len(port) < 6):
        raise UserError(f"{text!r} is not an address", _EXAMPLES)
    if int(port) >= 1 << 16:
        raise UserError(f"there is no port {port}", _EXAMPLES)
    return TcpAddress(host, int(port))


class SocketLink:
    """A connected stream socket; satisfies `pyvmm.migration.source.Link`."""

    def __init__(self, stream: socket.socket) -> None:
        stream.settimeout(IDLE_TIMEOUT_S)
        self._stream = stream
        self._early = b""  # what `readable` had to read to find out

    def send(self, data: Buffer) -> None:
        view = memoryview(data)
        try:
            while view:  # not sendall, whose time-out is for all of it
                view = view[self._stream.send(view) :]
        except OSError as error:
            raise _broken(error) from error

    def receive(self, at_most: int) -> bytes:
        if self._early:
            early, self._early = self._early, b""
            return early
        try:
            return self._stream.recv(min(at_most, _RECEIVE_BYTES))
        except OSError as error:
            raise _broken(error) from error

    def readable(self) -> bool:
        if self._early:
            return True
        if not isinstance(self._stream, ssl.SSLSocket):
            poll = select.poll()
            poll.register(self._stream, select.POLLIN)
            return bool(poll.poll(0))
        # What is there may be for TLS itself, a session ticket for one; reading tells.
        self._stream.settimeout(0.0)
        try:
            self._early = self._stream.recv(1)
        except ssl.SSLWantReadError:
            return False
        except OSError as error:
            raise _broken(error) from error
        finally:
            self._stream.settimeout(IDLE_TIMEOUT_S)
        return True

    def abort(self) -> None:
        _hang_up(self._stream)

    def close(self) -> None:
        """Hang up; nobody uses the link any more."""
        self._stream.close()


class MigrationListener:
    """Waits for one source at `address`. Raises `UserError` when that cannot be."""

    def __init__(self, address: Address, security: Security) -> None:
        security.check(address)
        self._context = security.tls.context(server=True) if security.tls else None
        self._file: Listener | None = None
        self._newcomer: ssl.SSLSocket | None = None  # who has not proved anything yet
        self._inside = incoming_socket(str(address))
        self.address: Address = address
        """Where it really listens."""
        if self._inside is not None:
            self.address = parse_migration_address(self._inside.address)
            self._file = Listener(self._inside.path)
        elif isinstance(address, UnixAddress):
            self._file = Listener(address.path)
        if self._file is not None:
            self.socket = self._file.socket
            return
        assert isinstance(address, TcpAddress)
        try:
            self.socket = socket.create_server(
                (address.host, address.port), family=_family(address)
            )
        except OSError as error:
            raise UserError(
                f"cannot listen on {address}: {reason(error)}", "choose another address"
            ) from error
        self.address = TcpAddress(address.host, self.socket.getsockname()[1])

    def accept(self) -> SocketLink:
        """Wait for a source, however long it takes; stop listening when there is one.

        Who cannot prove to be trusted is turned away, and the waiting goes on. Raises
        `MigrationError` when `close` was called.
        """
        while True:
            try:
                stream, _ = self.socket.accept()
            except OSError as error:
                raise MigrationError("nobody came") from error
            try:
                link = self._welcome(stream)
            except MigrationError as error:
                _log.warning("a source was turned away: %s", error)
                continue
            self.close()
            return link

    def _welcome(self, stream: socket.socket) -> SocketLink:
        if self._context is None:
            return SocketLink(stream)
        stream.settimeout(CONNECT_TIMEOUT_S)
        link = _with_tls(stream, self._context, None, self._greet)
        self._newcomer = None
        return link

    def _greet(self, newcomer: ssl.SSLSocket) -> None:
        self._newcomer = newcomer
        if self.socket.fileno() < 0:  # `close` has just not seen it
            _hang_up(newcomer)

    def close(self) -> None:
        """Stop listening; may be called from another thread, and again."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        if self._file is not None:
            self._file.remove()
        self.socket.close()
        if (newcomer := self._newcomer) is not None:
            _hang_up(newcomer)
        inside, self._inside = self._inside, None
        if inside is not None:
            _listen_no_more(inside)


def connect(address: Address, security: Security) -> SocketLink:
    """A connection to a destination that waits at `address`. Raises `UserError`."""
    security.check(address)
    context = security.tls.context(server=False) if security.tls else None
    try:
        stream = _reach(address)
    except OSError as error:
        raise UserError(
            f"cannot connect to {address}: {reason(error)}",
            f"start the destination first: pyvmm run --incoming {address}",
        ) from error
    if context is None or not isinstance(address, TcpAddress):
        return SocketLink(stream)
    try:
        return _with_tls(stream, context, address.host)
    except MigrationError as error:
        raise UserError(
            f"{address} is not to be trusted: {error}", "check the certificates of both sides"
        ) from error


def dial(address: Address) -> socket.socket:
    """A stream from this very machine to `address`. OSError."""
    if isinstance(address, TcpAddress):
        try:
            stream = socket.create_connection((address.host, address.port), CONNECT_TIMEOUT_S)
        except UnicodeError as error:
            raise _no_name(address) from error
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return stream
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    try:
        stream.settimeout(CONNECT_TIMEOUT_S)
        stream.connect(str(address.path))
    except OSError:
        stream.close()
        raise
    return stream


def _reach(address: Address) -> socket.socket:
    """A stream to `address`: of what listens in the same lab, if so, else outside. OSError."""
    try:
        return dial(address)
    except OSError:
        door = proxy_socket()
        if door is None:
            raise
    from pyvmm.sockets.proxy_client import connect_through_proxy

    if isinstance(address, UnixAddress):
        address = UnixAddress(address.path.absolute())
    return connect_through_proxy(door, str(address))


def _listen_no_more(inside: IncomingSocket) -> None:
    """Have it refused outside, too, to come here."""
    from pyvmm.sockets.proxy_client import close_forwarded_listener

    door = proxy_socket()
    if door is not None:
        with contextlib.suppress(OSError):  # then the lab is ending, and with it all listening
            close_forwarded_listener(door, inside.path)


def _with_tls(
    stream: socket.socket,
    context: ssl.SSLContext,
    host: str | None,
    begun: Callable[[ssl.SSLSocket], None] = lambda stream: None,
) -> SocketLink:
    """Find out who is there; without a host name, as a server. `begun` gets what can be hung up."""
    try:
        stream = context.wrap_socket(
            stream, server_side=host is None, server_hostname=host, do_handshake_on_connect=False
        )
        begun(stream)
        stream.do_handshake()
    except OSError as error:
        stream.close()
        raise MigrationError(f"TLS failed: {reason(error)}") from error
    return SocketLink(stream)


def _hang_up(stream: socket.socket) -> None:
    """End what another thread does with it. TLS itself would only be forgotten."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(stream, socket.SHUT_RDWR)


def _is_local(address: TcpAddress) -> bool:
    """Whether every address that the host name stands for is of the loopback network."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise UserError(f"there is no host {address.host!r}", "check its name") from error
    except OSError as error:
        if in_lab():
            return False  # names are looked up outside; the lab knows just those in /etc/hosts
        raise UserError(
            f"there is no host {address.host!r}: {reason(error)}", "check its name"
        ) from error
    return all(ipaddress.ip_address(str(entry[4][0])).is_loopback for entry in found)


def _family(address: TcpAddress) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address.host else socket.AF_INET


def _broken(error: OSError) -> LinkBroken:
    if isinstance(error, TimeoutError):
        return LinkBroken(f"the other side is silent since {IDLE_TIMEOUT_S:g} s")
    return LinkBroken(f"the connection broke: {reason(error)}")


def _no_name(address: TcpAddress) -> OSError:
    return OSError(errno.EINVAL, f"{address.host!r} is no host name")


def reason(error: OSError) -> str:
    """What is wrong, for the middle of a sentence."""
    if isinstance(error, ssl.SSLError):
        return str(getattr(error, "verify_message", "") or error.reason or error).lower()
    return (error.strerror or str(error)).lower()
