# SPDX-License-Identifier: Apache-2.0
"""A source connects to a destination, on real sockets and with real certificates."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from pyvmm.errors import UserError
from pyvmm.sockets import lab_paths
from pyvmm.sockets.addresses import TcpAddress, UnixAddress
from pyvmm.sockets.connect import connect, connect_directly
from pyvmm.sockets.errors import ConnectionLost, HandshakeFailed
from pyvmm.sockets.link import SocketLink
from pyvmm.sockets.listener import MigrationListener
from pyvmm.sockets.tls import Security, TlsFiles
from tests.pyvmm.sockets.accepting import accept_connection
from tests.pyvmm.sockets.certificates import certificate

LOCAL = TcpAddress("127.0.0.1", 0)


class AcceptThread:
    """Accepts until a peer is trusted, in a thread; `link` or `error` is the result."""

    def __init__(self, listener: MigrationListener) -> None:
        self.listener = listener
        self.link: SocketLink | None = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        while self.link is None and self.error is None:
            try:
                self.link = accept_connection(self.listener)
            except HandshakeFailed:
                continue
            except (OSError, ValueError) as error:  # the listener is closed
                self.error = error

    def accepted(self) -> SocketLink:
        self._thread.join(20)
        assert self.link is not None, self.error
        return self.link

    def close(self) -> None:
        self.listener.close()
        self._thread.join(20)
        if self.link is not None:
            self.link.close()


Accept = Callable[[MigrationListener], AcceptThread]


@pytest.fixture
def accept() -> Iterator[Accept]:
    started: list[AcceptThread] = []

    def start(listener: MigrationListener) -> AcceptThread:
        started.append(AcceptThread(listener))
        return started[-1]

    yield start
    for thread in started:
        thread.close()


def receive(link: SocketLink, count: int) -> bytes:
    received = b""
    while len(received) < count:
        received += link.receive(count - len(received))
    return received


def exchange(source: SocketLink, destination: SocketLink) -> None:
    """Send more than the sockets buffer, then abort and check that both sides notice."""
    sent = bytes(range(256)) * 40_000
    sender = threading.Thread(target=source.send, args=(sent,))
    sender.start()
    assert receive(destination, len(sent)) == sent
    sender.join(20)
    assert not source.readable()
    destination.send(b"thanks")
    while not source.readable():
        pass
    assert receive(source, 6) == b"thanks"
    destination.send(b"again")
    while not source.readable():
        pass
    buffer = memoryview(bytearray(8))
    filled = 0
    while filled < 5:
        filled += source.receive_into(buffer[filled:])
    assert bytes(buffer) == b"again\0\0\0"
    source.abort()
    assert destination.receive_into(buffer) == 0
    assert destination.receive(1) == b""
    with pytest.raises(ConnectionLost, match="connection failed"):
        source.send(b"more")
    source.close()


def test_bytes_cross_a_tcp_connection(accept: Accept) -> None:
    accepting = accept(MigrationListener(LOCAL, Security()))
    source = connect(accepting.listener.address, Security())
    exchange(source, accepting.accepted())
    with pytest.raises(UserError, match="no destination can be reached"):
        connect(accepting.listener.address, Security())


def test_bytes_cross_a_unix_socket_and_its_file_is_removed(accept: Accept, tmp_path: Path) -> None:
    address = UnixAddress(tmp_path / "m")
    accepting = accept(MigrationListener(address, Security()))
    assert address.path.stat().st_mode & 0o777 == 0o600
    source = connect(address, Security())
    exchange(source, accepting.accepted())
    assert not address.path.exists()


def test_in_the_lab_errors_name_the_requested_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested = UnixAddress(Path("/asked/for"))
    monkeypatch.setenv(lab_paths.IN_LAB_VARIABLE, "1")
    for name, value in lab_paths.incoming_variable(str(requested), str(requested)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(lab_paths, "INCOMING_SOCKET", str(tmp_path / "absent" / "inner.sock"))
    with pytest.raises(UserError, match="cannot create the socket unix:/asked/for: no such file"):
        MigrationListener(requested, Security())


@pytest.fixture(scope="module")
def certificates() -> Iterator[Callable[[str, str], TlsFiles]]:
    """Return a function that issues a certificate by the named CA for a name."""
    with tempfile.TemporaryDirectory() as directory:
        yield partial(certificate, Path(directory))


def test_bytes_cross_a_tls_connection(
    accept: Accept,
    certificates: Callable[[str, str], TlsFiles],
) -> None:
    destination = Security(certificates("ca", "destination"))
    accepting = accept(MigrationListener(LOCAL, destination))
    source = connect(accepting.listener.address, Security(certificates("ca", "source")))
    exchange(source, accepting.accepted())


def test_untrusted_peers_are_rejected_and_the_listener_keeps_waiting(
    accept: Accept,
    certificates: Callable[[str, str], TlsFiles],
) -> None:
    destination = certificates("ca", "destination")
    accepting = accept(MigrationListener(LOCAL, Security(destination)))
    address = accepting.listener.address
    stranger = certificates("other", "stranger")
    with pytest.raises(UserError, match="is not trusted"):
        connect(address, Security(stranger))
    # Trusts the destination but is not trusted by it: TLS 1.3 reports that with the first reply.
    spy = TlsFiles(destination.ca, stranger.certificate, stranger.key)
    with pytest.raises((UserError, ConnectionLost)):
        connect(address, Security(spy)).receive(1)
    plain = connect(address, Security())
    plain.send(b"hello")
    assert accepting.link is None
    plain.close()
    source = connect(address, Security(certificates("ca", "source")))
    exchange(source, accepting.accepted())


def test_a_handshake_is_limited_as_a_whole(certificates: Callable[[str, str], TlsFiles]) -> None:
    """A client sends the beginning of a record, byte by byte."""
    listener = MigrationListener(LOCAL, Security(certificates("ca", "destination")))
    ended = threading.Event()

    def dribble(stream: socket.socket) -> None:
        for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500):
            if ended.wait(0.02):
                return
            stream.send(bytes([byte]))

    with connect_directly(listener.address) as stream:
        dribbling = threading.Thread(target=dribble, args=(stream,))
        dribbling.start()
        begin = time.monotonic()
        with pytest.raises(HandshakeFailed):
            accept_connection(listener, 0.3)
        assert time.monotonic() - begin < 2
        ended.set()
        dribbling.join()
    listener.close()
