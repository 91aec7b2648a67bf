# SPDX-License-Identifier: Apache-2.0
"""Connections from inside the lab to sockets outside: door, link and dialler, on real sockets.

Both ends of the link are turned by a thread; the callers are the tests.
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
from pyvmm.lab import outbound_connector as dialling
from pyvmm.lab import proxy as outward
from pyvmm.lab.frames import MAX_NAME_BYTES
from pyvmm.lab.mux import Multiplexer
from pyvmm.lab.outbound_connector import MAX_PENDING, OutboundConnector
from pyvmm.lab.proxy import FIRST_CHANNEL, SocketProxy
from pyvmm.lab.session import LabSession
from pyvmm.sockets import lab_paths as places
from pyvmm.sockets.addresses import TcpAddress, UnixAddress, parse_migration_address
from pyvmm.sockets.connect import connect
from pyvmm.sockets.proxy_client import LENGTH, close_forwarded_listener, connect_through_proxy
from pyvmm.sockets.tls import Security


class Passage:
    """What an agent and a session are to each other, without a lab between them."""

    def __init__(self, door: Path) -> None:
        self.links = socket.socketpair()
        self.outside = Multiplexer(self.links[0].fileno(), lambda message: None)
        self.agent = Multiplexer(self.links[1].fileno(), lambda message: None)
        self.unlistened: list[str] = []
        self.door = door
        SocketProxy(self.agent, str(door), self.unlistened.append)
        session = LabSession.__new__(LabSession)
        session._mux, session._dialler = self.outside, OutboundConnector()
        self.outside.on_connect = session._dial
        self.outside.watch(session._dialler.fileno(), session._answer_dials)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._turn, args=(mux,)) for mux in (self.outside, self.agent)
        ]
        for thread in self._threads:
            thread.start()
        self.session = session

    def _turn(self, mux: Multiplexer) -> None:
        while not self._stop.is_set():
            mux.turn(20)

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)
        for mux in (self.outside, self.agent):
            for number in list(mux.channels):
                mux.forget(number)
        self.session._dialler.close()
        for link in self.links:
            link.close()


@pytest.fixture
def passage(tmp_path: Path) -> Iterator[Passage]:
    made = Passage(tmp_path / "door")
    yield made
    made.close()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "outside"))
        made.listen()
        made.settimeout(20)
        yield made


def receive(stream: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count and (piece := stream.recv(count - len(data))):
        data += piece
    return bytes(data)


def until(condition: Callable[[], object]) -> None:
    waiting = threading.Event()
    for _ in range(2000):
        if condition():
            return
        waiting.wait(0.01)
    raise AssertionError("in vain")


def test_a_stream_to_a_unix_socket_and_back(passage: Passage, listener: socket.socket) -> None:
    data = random.Random(4).randbytes(3 << 20)
    caller = connect_through_proxy(passage.door, f"unix:{listener.getsockname()}")
    called, _ = listener.accept()
    called.settimeout(20)
    with caller, called:
        for one, other in ((caller, called), (called, caller)):
            sender = threading.Thread(target=one.sendall, args=(data,))
            sender.start()
            assert receive(other, len(data)) == data
            sender.join(20)
        caller.sendall(b"the end")
        caller.shutdown(socket.SHUT_WR)
        assert receive(called, 100) == b"the end"
        called.sendall(b"and mine")
        called.close()
        assert receive(caller, 100) == b"and mine"
    until(lambda: not passage.agent.channels and not passage.outside.channels)


def test_what_is_sent_at_once_is_not_taken_for_the_answer(
    passage: Passage, listener: socket.socket
) -> None:
    def greet() -> None:
        with listener.accept()[0] as called:
            called.sendall(b"welcome")

    server = threading.Thread(target=greet)
    server.start()
    with connect_through_proxy(passage.door, f"unix:{listener.getsockname()}") as caller:
        assert receive(caller, 100) == b"welcome"
    server.join(20)


def test_whoever_dies_is_missed_at_the_other_end(passage: Passage, listener: socket.socket) -> None:
    address = f"unix:{listener.getsockname()}"
    for dies_outside in (True, False):
        caller = connect_through_proxy(passage.door, address)
        called, _ = listener.accept()
        called.settimeout(20)
        dying, left = (called, caller) if dies_outside else (caller, called)
        dying.sendall(b"last words")
        dying.shutdown(socket.SHUT_RDWR)  # what SocketLink.abort does
        assert receive(left, 100) == b"last words"
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            left.sendall(bytes(8 << 20))
        caller.close()
        called.close()
    until(lambda: not passage.agent.channels and not passage.outside.channels)


@pytest.mark.parametrize(
    "address", [UnixAddress(Path("/nowhere/at/all")), TcpAddress("127.0.0.1", 0)]
)
def test_refusals_read_as_they_do_without_the_lab(
    address: UnixAddress | TcpAddress, passage: Passage, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(address, TcpAddress):
        with socket.create_server(("127.0.0.1", 0)) as unused:
            address = TcpAddress("127.0.0.1", unused.getsockname()[1])
    with pytest.raises(UserError) as without:
        connect(address, Security())
    monkeypatch.setenv(places.IN_LAB_VARIABLE, "1")
    monkeypatch.setattr(places, "PROXY_SOCKET", str(passage.door))
    with pytest.raises(UserError) as within:
        connect(address, Security())
    assert str(within.value) == str(without.value)
    until(lambda: not passage.agent.channels and not passage.outside.channels)


def test_in_the_lab_what_is_outside_is_reached_by_its_address(
    passage: Passage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is the caller's, wherever the session outside is."""
    monkeypatch.setenv(places.IN_LAB_VARIABLE, "1")
    monkeypatch.setattr(places, "PROXY_SOCKET", str(passage.door))
    dialled: list[str] = []
    dial = dialling.OutboundConnector.connect

    def watched(self: OutboundConnector, number: int, address: str) -> None:
        dialled.append(address)
        dial(self, number, address)

    monkeypatch.setattr(dialling.OutboundConnector, "connect", watched)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"cannot connect to unix:m: no such file"):
        connect(parse_migration_address("unix:m"), Security())
    assert dialled == [f"unix:{tmp_path}/m"]


@pytest.mark.parametrize(
    "address", ["exec:rm", "tcp:host", "unix:" + "x" * 200, "\0", "tcp:a..b:1", "é" * 500]
)
def test_what_is_no_address_outside_is_refused(passage: Passage, address: str) -> None:
    with pytest.raises(OSError, match=r"is not an address|longer than|not a host name"):
        connect_through_proxy(passage.door, address)


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
def test_a_senseless_request_is_hung_up_on_and_the_next_is_served(
    passage: Passage, listener: socket.socket, request_bytes: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(20)
        caller.connect(str(passage.door))
        caller.sendall(request_bytes)
        caller.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert caller.recv(1) == b""
    connect_through_proxy(passage.door, f"unix:{listener.getsockname()}").close()


def test_a_caller_that_gives_up_before_the_answer_leaves_nothing(
    passage: Passage, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = threading.Event()
    dial = dialling.OutboundConnector._connect

    def late(self: OutboundConnector, number: int, text: str) -> None:
        gone.wait(20)
        dial(self, number, text)

    monkeypatch.setattr(dialling.OutboundConnector, "_connect", late)
    request = b'{"connect": "unix:%s"}' % os.fsencode(listener.getsockname())
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(passage.door))
        caller.sendall(LENGTH.pack(len(request)) + request)
        until(lambda: FIRST_CHANNEL in passage.outside.channels)
    gone.set()
    called, _ = listener.accept()
    with called:
        assert called.recv(1) == b""
    until(lambda: not passage.agent.channels and not passage.outside.channels)


def test_too_many_at_once_are_refused(
    passage: Passage, monkeypatch: pytest.MonkeyPatch, listener: socket.socket
) -> None:
    release = threading.Event()
    dial = dialling.OutboundConnector._connect

    def late(self: OutboundConnector, number: int, text: str) -> None:
        release.wait(20)
        dial(self, number, text)

    monkeypatch.setattr(dialling.OutboundConnector, "_connect", late)
    address = f"unix:{listener.getsockname()}"
    streams: list[socket.socket] = []
    threads = [
        threading.Thread(
            target=lambda: streams.append(connect_through_proxy(passage.door, address))
        )
        for _ in range(MAX_PENDING)
    ]
    for thread in threads:
        thread.start()
    until(lambda: len(passage.outside.channels) == MAX_PENDING)
    with pytest.raises(OSError, match="too many"):
        connect_through_proxy(passage.door, address)
    release.set()
    for thread in threads:
        thread.join(20)
    assert len(streams) == MAX_PENDING
    connect_through_proxy(passage.door, address).close()
    for stream in streams:
        stream.close()


def test_callers_that_say_nothing_do_not_pile_up(passage: Passage) -> None:
    callers = [socket.socket(socket.AF_UNIX) for _ in range(outward.MAX_CALLERS + 1)]
    for caller in callers:
        caller.settimeout(20)
        caller.connect(str(passage.door))
    assert callers[-1].recv(1) == b""
    for caller in callers:
        caller.close()


def test_listening_no_more_is_passed_on(passage: Passage) -> None:
    close_forwarded_listener(passage.door, Path("/dev/shm/x"))
    assert passage.unlistened == ["/dev/shm/x"]
