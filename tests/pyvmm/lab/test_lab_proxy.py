# SPDX-License-Identifier: Apache-2.0
"""Connections from the lab to sockets of the host, through proxy, link and connector.

A thread runs each end of the link; the tests are the proxy's clients.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvmm.errors import UserError
from pyvmm.lab import proxy as lab_proxy
from pyvmm.lab.forwarding import SocketForwarder
from pyvmm.lab.frames import MAX_NAME_BYTES
from pyvmm.lab.mux import Multiplexer
from pyvmm.lab.outbound_connector import MAX_PENDING, OutboundConnector
from pyvmm.lab.proxy import FIRST_CHANNEL, SocketProxy
from pyvmm.sockets import lab_paths
from pyvmm.sockets.addresses import TcpAddress, UnixAddress, parse_migration_address
from pyvmm.sockets.connect import connect
from pyvmm.sockets.proxy_client import LENGTH, close_forwarded_listener, connect_through_proxy
from pyvmm.sockets.tls import Security


class ProxiedHost:
    """An agent's proxy and a host's forwarder, joined by a link without a lab."""

    def __init__(self, proxy: Path) -> None:
        self.links = socket.socketpair()
        self.host = Multiplexer(
            self.links[0].fileno(),
            lambda message: None,
            on_connect=lambda number, address: self._forwarder.connect(number, address),
        )
        self.agent = Multiplexer(self.links[1].fileno(), lambda message: None)
        self.unlistened: list[str] = []
        self.proxy = proxy
        SocketProxy(self.agent, str(proxy), self.unlistened.append)
        self._forwarder = SocketForwarder(self.host, ())
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._turn, args=(mux,)) for mux in (self.host, self.agent)
        ]
        for thread in self._threads:
            thread.start()

    def _turn(self, mux: Multiplexer) -> None:
        while not self._stop.is_set():
            mux.turn(20)

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)
        for mux in (self.host, self.agent):
            for number in list(mux.channels):
                mux.forget(number)
        self._forwarder.close()
        for link in self.links:
            link.close()

    def no_channels(self) -> bool:
        return not self.agent.channels and not self.host.channels


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[ProxiedHost]:
    made = ProxiedHost(tmp_path / "proxy")
    yield made
    made.close()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "listener"))
        made.listen()
        made.settimeout(20)
        yield made


def receive(stream: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count and (piece := stream.recv(count - len(data))):
        data += piece
    return bytes(data)


def wait_until(condition: Callable[[], object]) -> None:
    waiting = threading.Event()
    for _ in range(2000):
        if condition():
            return
        waiting.wait(0.01)
    raise AssertionError("the condition never held")


def test_a_stream_crosses_both_ways_and_ends(proxied: ProxiedHost, listener: socket.socket) -> None:
    data = random.Random(4).randbytes(3 << 20)
    client = connect_through_proxy(proxied.proxy, f"unix:{listener.getsockname()}")
    accepted, _ = listener.accept()
    accepted.settimeout(20)
    with client, accepted:
        for one, other in ((client, accepted), (accepted, client)):
            sender = threading.Thread(target=one.sendall, args=(data,))
            sender.start()
            assert receive(other, len(data)) == data
            sender.join(20)
        client.sendall(b"last request")
        client.shutdown(socket.SHUT_WR)
        assert receive(accepted, 100) == b"last request"
        accepted.sendall(b"last reply")
        accepted.close()
        assert receive(client, 100) == b"last reply"
    wait_until(proxied.no_channels)


def test_data_sent_right_after_the_reply_belongs_to_the_connection(
    proxied: ProxiedHost, listener: socket.socket
) -> None:
    def greet() -> None:
        with listener.accept()[0] as accepted:
            accepted.sendall(b"welcome")

    server = threading.Thread(target=greet)
    server.start()
    with connect_through_proxy(proxied.proxy, f"unix:{listener.getsockname()}") as client:
        assert receive(client, 100) == b"welcome"
    server.join(20)


def test_a_closed_connection_is_closed_at_the_other_end(
    proxied: ProxiedHost, listener: socket.socket
) -> None:
    address = f"unix:{listener.getsockname()}"
    for host_dies in (True, False):
        client = connect_through_proxy(proxied.proxy, address)
        accepted, _ = listener.accept()
        accepted.settimeout(20)
        dying, left = (accepted, client) if host_dies else (client, accepted)
        dying.sendall(b"last bytes")
        dying.shutdown(socket.SHUT_RDWR)  # what SocketLink.abort does
        assert receive(left, 100) == b"last bytes"
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            left.sendall(bytes(8 << 20))
        client.close()
        accepted.close()
    wait_until(proxied.no_channels)


@pytest.mark.parametrize(
    "address", [UnixAddress(Path("/nowhere/at/all")), TcpAddress("127.0.0.1", 0)]
)
def test_errors_are_the_same_as_without_the_lab(
    address: UnixAddress | TcpAddress, proxied: ProxiedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(address, TcpAddress):
        with socket.create_server(("127.0.0.1", 0)) as unused:
            address = TcpAddress("127.0.0.1", unused.getsockname()[1])
    with pytest.raises(UserError) as without:
        connect(address, Security())
    monkeypatch.setenv(lab_paths.IN_LAB_VARIABLE, "1")
    monkeypatch.setattr(lab_paths, "PROXY_SOCKET", str(proxied.proxy))
    with pytest.raises(UserError) as within:
        connect(address, Security())
    assert str(within.value) == str(without.value)
    wait_until(proxied.no_channels)


def test_a_relative_path_is_resolved_where_the_command_runs(
    proxied: ProxiedHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(lab_paths.IN_LAB_VARIABLE, "1")
    monkeypatch.setattr(lab_paths, "PROXY_SOCKET", str(proxied.proxy))
    requested: list[str] = []
    connect_channel = OutboundConnector.connect

    def recording(self: OutboundConnector, number: int, address: str) -> None:
        requested.append(address)
        connect_channel(self, number, address)

    monkeypatch.setattr(OutboundConnector, "connect", recording)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no destination can be reached at unix:m: no such file"):
        connect(parse_migration_address("unix:m"), Security())
    assert requested == [f"unix:{tmp_path}/m"]


@pytest.mark.parametrize(
    "address", ["exec:rm", "tcp:host", "unix:" + "x" * 200, "\0", "tcp:a..b:1", "é" * 500]
)
def test_malformed_addresses_are_refused_by_the_host(proxied: ProxiedHost, address: str) -> None:
    with pytest.raises(OSError, match=r"is not an address|longer than|not a host name"):
        connect_through_proxy(proxied.proxy, address)


@pytest.mark.parametrize(
    "request_bytes",
    [
        LENGTH.pack(0),
        LENGTH.pack(4) + b"[{}]",
        LENGTH.pack(2) + b"\xff{",
        LENGTH.pack(14) + b'{"connect": 1}',
        LENGTH.pack(15) + b'{"connect": ""}',
        LENGTH.pack(13) + b'{"quit": "x"}',
        LENGTH.pack(MAX_NAME_BYTES + 20) + b'{"connect": "' + b"x" * (MAX_NAME_BYTES + 5) + b'"}',
        LENGTH.pack(100) + b"and no more",
    ],
)
def test_a_malformed_request_is_disconnected_and_the_next_is_served(
    proxied: ProxiedHost, listener: socket.socket, request_bytes: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(proxied.proxy))
        client.sendall(request_bytes)
        client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    connect_through_proxy(proxied.proxy, f"unix:{listener.getsockname()}").close()


def test_a_client_that_closes_before_the_reply_leaves_no_channel(
    proxied: ProxiedHost, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = threading.Event()
    connect_now = OutboundConnector._connect

    def delayed(self: OutboundConnector, number: int, text: str) -> None:
        gone.wait(20)
        connect_now(self, number, text)

    monkeypatch.setattr(OutboundConnector, "_connect", delayed)
    request = b'{"connect": "unix:%s"}' % os.fsencode(listener.getsockname())
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(proxied.proxy))
        client.sendall(LENGTH.pack(len(request)) + request)
        wait_until(lambda: FIRST_CHANNEL in proxied.host.channels)
    gone.set()
    accepted, _ = listener.accept()
    with accepted:
        assert accepted.recv(1) == b""
    wait_until(proxied.no_channels)


def test_connections_beyond_the_limit_are_refused(
    proxied: ProxiedHost, monkeypatch: pytest.MonkeyPatch, listener: socket.socket
) -> None:
    release = threading.Event()
    connect_now = OutboundConnector._connect

    def delayed(self: OutboundConnector, number: int, text: str) -> None:
        release.wait(20)
        connect_now(self, number, text)

    monkeypatch.setattr(OutboundConnector, "_connect", delayed)
    address = f"unix:{listener.getsockname()}"
    streams: list[socket.socket] = []
    threads = [
        threading.Thread(
            target=lambda: streams.append(connect_through_proxy(proxied.proxy, address))
        )
        for _ in range(MAX_PENDING)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(proxied.host.channels) == MAX_PENDING)
    with pytest.raises(OSError, match="too many"):
        connect_through_proxy(proxied.proxy, address)
    release.set()
    for thread in threads:
        thread.join(20)
    assert len(streams) == MAX_PENDING
    connect_through_proxy(proxied.proxy, address).close()
    for stream in streams:
        stream.close()


def test_silent_clients_beyond_the_limit_are_disconnected(proxied: ProxiedHost) -> None:
    clients = [socket.socket(socket.AF_UNIX) for _ in range(lab_proxy.MAX_CLIENTS + 1)]
    for client in clients:
        client.settimeout(20)
        client.connect(str(proxied.proxy))
    assert clients[-1].recv(1) == b""
    for client in clients:
        client.close()


def test_the_end_of_listening_reaches_the_agent(proxied: ProxiedHost) -> None:
    close_forwarded_listener(proxied.proxy, Path("/dev/shm/x"))
    assert proxied.unlistened == ["/dev/shm/x"]
