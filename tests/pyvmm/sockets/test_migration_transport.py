# SPDX-License-Identifier: Apache-2.0
"""Connections for migrations, on real sockets and with real certificates."""

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
from pyvmm.migration.destination import DestinationMigration
from pyvmm.migration.errors import MigrationError
from pyvmm.sockets import transport
from pyvmm.sockets.lab_paths import IN_LAB_VARIABLE
from pyvmm.sockets.transport import (
    MigrationListener,
    Security,
    SocketLink,
    TcpAddress,
    TlsFiles,
    UnixAddress,
    connect,
    dial,
    parse_migration_address,
)
from tests.pyvmm.migration.migration_guest import FakeTarget
from tests.pyvmm.sockets.certificates import certificate

LOCAL = TcpAddress("127.0.0.1", 0)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp:localhost:4444", TcpAddress("localhost", 4444)),
        ("tcp:[::1]:0", TcpAddress("::1", 0)),
        ("unix:/tmp/m", UnixAddress(Path("/tmp/m"))),
    ],
)
def test_addresses(text: str, address: TcpAddress | UnixAddress) -> None:
    assert parse_migration_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "tcp:", "tcp:host", "tcp::1", "tcp:host:", "tcp:host:x", "tcp:host:65536"),
        *("tcp:::1:4444", "tcp:h:²", "unix:", "unix:/x,server=on", "exec:cat", "unix:" + "x" * 200),
    ],
)
def test_no_addresses(text: str) -> None:
    with pytest.raises(UserError):
        parse_migration_address(text)


@pytest.mark.parametrize(
    ("address", "security"),
    [
        (TcpAddress("192.0.2.1", 1), Security()),
        (TcpAddress("0.0.0.0", 1), Security()),
        (TcpAddress("no.such.host.invalid", 1), Security()),
        (UnixAddress(Path("/m")), Security(TlsFiles(Path("a"), Path("b"), Path("c")))),
    ],
)
def test_what_others_could_read_is_refused(
    address: TcpAddress | UnixAddress, security: Security
) -> None:
    with pytest.raises(UserError):
        security.check(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_host_needs_no_tls(host: str) -> None:
    Security().check(TcpAddress(host, 1))
    Security(insecure=True).check(TcpAddress("192.0.2.1", 1))


def test_in_the_lab_a_name_that_cannot_be_looked_up_is_not_this_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(IN_LAB_VARIABLE, "1")
    address = TcpAddress("no.such.host.invalid", 1)
    with pytest.raises(UserError, match="not on this host, and there is no TLS"):
        Security().check(address)
    Security(insecure=True).check(address)
    Security().check(TcpAddress("localhost", 1))


@pytest.mark.parametrize("security", [Security(), Security(insecure=True)])
def test_a_host_that_can_have_no_such_name(security: Security) -> None:
    with pytest.raises(UserError, match="host"):
        connect(TcpAddress("a..b", 1), security)


class Meeting:
    """A listener and what it accepts, in a thread."""

    def __init__(self, listener: MigrationListener) -> None:
        self.listener = listener
        self.link: SocketLink | None = None
        self.error: MigrationError | None = None
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        try:
            self.link = self.listener.accept()
        except MigrationError as error:
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


@pytest.fixture
def meet() -> Iterator[Callable[[MigrationListener], Meeting]]:
    meetings: list[Meeting] = []

    def start(listener: MigrationListener) -> Meeting:
        meetings.append(Meeting(listener))
        return meetings[-1]

    yield start
    for meeting in meetings:
        meeting.close()


def receive(link: SocketLink, count: int) -> bytes:
    received = b""
    while len(received) < count:
        received += link.receive(count - len(received))
    return received


def talk(source: SocketLink, destination: SocketLink) -> None:
    """More than any socket holds goes over, then the end is heard."""
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
    source.abort()
    assert destination.receive(1) == b""
    with pytest.raises(MigrationError, match="connection broke"):
        source.send(b"more")
    source.close()


def test_tcp(meet: Callable[[MigrationListener], Meeting]) -> None:
    meeting = meet(MigrationListener(LOCAL, Security()))
    source = connect(meeting.listener.address, Security())
    talk(source, meeting.accepted())
    with pytest.raises(UserError, match="cannot connect"):
        connect(meeting.listener.address, Security())


def test_unix(meet: Callable[[MigrationListener], Meeting], tmp_path: Path) -> None:
    address = UnixAddress(tmp_path / "m")
    meeting = meet(MigrationListener(address, Security()))
    assert address.path.stat().st_mode & 0o777 == 0o600
    source = connect(address, Security())
    talk(source, meeting.accepted())
    assert not address.path.exists()


def test_nobody_comes(meet: Callable[[MigrationListener], Meeting]) -> None:
    meeting = meet(MigrationListener(LOCAL, Security()))
    meeting.close()
    assert "nobody came" in str(meeting.error)


@pytest.fixture(scope="module")
def certificates() -> Iterator[Callable[[str, str], TlsFiles]]:
    """Certificates for a name by a CA."""
    with tempfile.TemporaryDirectory() as directory:
        yield partial(certificate, Path(directory))


def test_tls(
    meet: Callable[[MigrationListener], Meeting],
    certificates: Callable[[str, str], TlsFiles],
) -> None:
    destination = Security(certificates("ca", "destination"))
    meeting = meet(MigrationListener(LOCAL, destination))
    source = connect(meeting.listener.address, Security(certificates("ca", "source")))
    talk(source, meeting.accepted())


def test_strangers_are_turned_away_and_the_waiting_goes_on(
    meet: Callable[[MigrationListener], Meeting],
    certificates: Callable[[str, str], TlsFiles],
) -> None:
    destination = certificates("ca", "destination")
    meeting = meet(MigrationListener(LOCAL, Security(destination)))
    address = meeting.listener.address
    stranger = certificates("other", "stranger")
    with pytest.raises(UserError, match="not to be trusted"):
        connect(address, Security(stranger))
    # Trusts the destination, but is not trusted by it: TLS 1.3 says so with the first answer.
    spy = TlsFiles(destination.ca, stranger.certificate, stranger.key)
    with pytest.raises((UserError, MigrationError)):
        connect(address, Security(spy)).receive(1)
    plain = connect(address, Security())
    plain.send(b"hello")
    assert meeting.link is None
    plain.close()
    source = connect(address, Security(certificates("ca", "source")))
    talk(source, meeting.accepted())


def test_who_says_nothing_delays_no_end(
    meet: Callable[[MigrationListener], Meeting],
    certificates: Callable[[str, str], TlsFiles],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "CONNECT_TIMEOUT_S", 60.0)  # longer than `close` waits
    meeting = meet(MigrationListener(LOCAL, Security(certificates("ca", "destination"))))
    with dial(meeting.listener.address):
        while meeting.listener._newcomer is None:
            time.sleep(0.01)
        meeting.close()
    assert "nobody came" in str(meeting.error)


def test_a_silent_source_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "IDLE_TIMEOUT_S", 0.2)
    received = count_calls(monkeypatch, SocketLink, "receive")
    ours, theirs = socket.socketpair()
    link = SocketLink(theirs)
    with ours, pytest.raises(MigrationError, match="silent since"):
        DestinationMigration(FakeTarget(), link).run()
    assert received() == 1
    link.close()


def count_calls(monkeypatch: pytest.MonkeyPatch, of: type, name: str) -> Callable[[], int]:
    """Count calls of a method from now on."""
    method, counted = getattr(of, name), []

    def counts(*arguments: object) -> object:
        counted.append(name)
        return method(*arguments)

    monkeypatch.setattr(of, name, counts)
    return lambda: len(counted)


def test_files_that_are_no_certificates(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be used"):
        MigrationListener(LOCAL, Security(TlsFiles(tmp_path, tmp_path, tmp_path)))
