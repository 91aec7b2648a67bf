# SPDX-License-Identifier: Apache-2.0
"""Listening on every address of a host name, and on IPv4 at `::`, as QEMU does."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from pyvmm.errors import UserError
from pyvmm.lab.forwarding import ForwardedListener, SocketForwarder
from pyvmm.lab.mux import Multiplexer
from pyvmm.sockets.addresses import TcpAddress
from pyvmm.sockets.connect import connect_directly
from pyvmm.sockets.errors import AddressUnavailable
from pyvmm.sockets.listener import MigrationListener
from pyvmm.sockets.tcp import listen_tcp
from pyvmm.sockets.tls import Security
from tests.pyvmm.sockets.accepting import accept_connection

Listen = Callable[[str, int], list[socket.socket]]
NO_IPV6 = "this host has no IPv6"


@pytest.fixture
def listen() -> Iterator[Listen]:
    """Return `listen_tcp` with a host and a port; its sockets are closed after the test."""
    opened: list[socket.socket] = []

    def listen(host: str, port: int) -> list[socket.socket]:
        listeners = listen_tcp(TcpAddress(host, port))
        opened.extend(listeners)
        return listeners

    yield listen
    for listener in opened:
        listener.close()


@pytest.fixture
def dual_stack_name(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a host name that resolves to ::1 and 127.0.0.1."""
    resolve = socket.getaddrinfo

    def resolve_both(host: str, *arguments: object, **more: object) -> object:
        hosts = ["::1", "127.0.0.1", "127.0.0.1"] if host == "both.test" else [host]
        return [found for each in hosts for found in resolve(each, *arguments, **more)]  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolve_both)
    return "both.test"


def port_of(listener: socket.socket) -> int:
    port = listener.getsockname()[1]
    assert isinstance(port, int)
    return port


def assert_reachable(*hosts: str, port: int) -> None:
    for host in hosts:
        connect_directly(TcpAddress(host, port)).close()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason=NO_IPV6)
def test_the_ipv6_wildcard_accepts_ipv4_too(listen: Listen) -> None:
    (listener,) = listen("::", 0)
    assert_reachable("::1", "127.0.0.1", port=port_of(listener))


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason=NO_IPV6)
def test_the_ipv6_wildcard_leaves_a_port_of_ipv4_to_its_listener(listen: Listen) -> None:
    (ipv4,) = listen("0.0.0.0", 0)
    (ipv6,) = listen("::", port_of(ipv4))
    assert_reachable("::1", "127.0.0.1", port=port_of(ipv4))
    with ipv6.accept()[0] as accepted:
        assert accepted.getpeername()[0] == "::1"
    ipv6.settimeout(0)
    with pytest.raises(BlockingIOError):
        ipv6.accept()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason=NO_IPV6)
def test_a_host_name_listens_on_each_of_its_addresses(listen: Listen, dual_stack_name: str) -> None:
    listeners = listen(dual_stack_name, 0)
    assert [listener.getsockname()[0] for listener in listeners] == ["::1", "127.0.0.1"]
    assert_reachable("::1", "127.0.0.1", port=port_of(listeners[0]))


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason=NO_IPV6)
def test_one_address_of_a_host_name_suffices(
    listen: Listen, dual_stack_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    (taken,) = listen("127.0.0.1", 0)
    port = port_of(taken)
    (listener,) = listen(dual_stack_name, port)
    assert listener.getsockname()[0] == "::1"
    assert caplog.messages == [f"not listening on tcp:127.0.0.1:{port}: address already in use"]


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason=NO_IPV6)
@pytest.mark.parametrize("host", ["::1", "127.0.0.1"])
def test_a_source_reaches_a_destination_on_each_address(dual_stack_name: str, host: str) -> None:
    listener = MigrationListener(TcpAddress(dual_stack_name, 0), Security(insecure=True))
    assert isinstance(listener.address, TcpAddress)
    with connect_directly(TcpAddress(host, listener.address.port)) as client:
        client.send(b"x")
        link = accept_connection(listener)
        assert link.receive(1) == b"x"
        link.close()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason=NO_IPV6)
def test_the_lab_forwards_every_address_and_closes_all(dual_stack_name: str) -> None:
    listener = MigrationListener(TcpAddress(dual_stack_name, 0), Security(insecure=True))
    ours, theirs = socket.socketpair()
    requests: list[str] = []
    host = Multiplexer(ours.fileno(), lambda message: None)
    agent = Multiplexer(
        theirs.fileno(), lambda message: None, on_open=lambda number, path: requests.append(path)
    )
    forwarded = [ForwardedListener(each, "/inner", listener.close) for each in listener.sockets]
    forwarder = SocketForwarder(host, forwarded)
    assert isinstance(listener.address, TcpAddress)
    assert_reachable("::1", "127.0.0.1", port=listener.address.port)
    while len(requests) < 2:
        host.turn(10)
        agent.turn(0)
    forwarder.unlisten("/inner")
    assert all(each.fileno() < 0 for each in listener.sockets)
    host.turn(0)
    forwarder.close()
    for number in list(host.channels):
        host.forget(number)
    ours.close()
    theirs.close()


def test_small_messages_to_another_host_are_sent_at_once(listen: Listen) -> None:
    (listener,) = listen("127.0.0.1", 0)
    with connect_directly(TcpAddress("127.0.0.1", port_of(listener))) as stream:
        assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 70, "192.0.2.1"])
def test_a_host_without_an_address_here_is_refused(host: str) -> None:
    with pytest.raises(AddressUnavailable, match=f"cannot listen on tcp:{host}:0: "):
        listen_tcp(TcpAddress(host, 0))


def test_an_address_in_use_is_refused(listen: Listen) -> None:
    (taken,) = listen("127.0.0.1", 0)
    with pytest.raises(UserError, match="address already in use"):
        listen("127.0.0.1", port_of(taken))
