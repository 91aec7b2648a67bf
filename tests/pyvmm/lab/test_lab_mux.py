# SPDX-License-Identifier: Apache-2.0
"""Two multiplexers joined by a socket pair, run in turns by one thread: nothing here blocks."""

import contextlib
import os
import random
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pyvmm.lab.frame_link import LinkClosedError
from pyvmm.lab.frames import MAX_NAME_BYTES, WINDOW_BYTES, Frame, FrameError, FrameType, encode
from pyvmm.lab.mux import Multiplexer, OnRequest

NUMBER = 20


class Pair:
    """Both ends of a link and the control messages each has received."""

    def __init__(self) -> None:
        self.links = socket.socketpair()
        self.messages: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
        self.on_connect: OnRequest = lambda number, address: None
        self.on_open: OnRequest = lambda number, path: None
        self.near = Multiplexer(
            self.links[0].fileno(),
            self.messages[0].append,
            on_connect=lambda number, address: self.on_connect(number, address),
        )
        self.far = Multiplexer(
            self.links[1].fileno(),
            self.messages[1].append,
            on_open=lambda number, path: self.on_open(number, path),
        )

    def turns(self, count: int = 20) -> None:
        for _ in range(count):
            self.near.turn(0)
            self.far.turn(0)


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    for mux in (made.near, made.far):
        for channel in mux.channels.values():
            for fd in {channel.source, channel.sink}:
                if fd is not None:
                    with contextlib.suppress(OSError):
                        os.close(fd)
    for link in made.links:
        link.close()


@pytest.fixture
def connected(pair: Pair) -> Iterator[tuple[Pair, socket.socket, socket.socket]]:
    """Connect a pair with one channel; yield the sockets of its client and its server."""
    client, near = socket.socketpair()
    server, far = socket.socketpair()

    def attach(number: int, _path: str) -> None:
        pair.far.reserve(number)
        pair.far.attach(number, far.detach())

    pair.on_open = attach
    pair.near.open(NUMBER, "/socket", near.detach())
    pair.turns(2)
    client.setblocking(False)
    server.setblocking(False)
    with client, server:
        yield pair, client, server


def receive(pair: Pair, stream: socket.socket, count: int) -> bytes:
    got = bytearray()
    for _ in range(10_000):
        pair.turns(1)
        with contextlib.suppress(BlockingIOError):
            got += stream.recv(1 << 16)
        if len(got) >= count:
            return bytes(got)
    raise AssertionError(f"only {len(got)} of {count} bytes arrived")


def test_a_megabyte_arrives_as_it_was_sent_both_ways(connected: Any) -> None:
    pair, client, server = connected
    data = random.Random(1).randbytes(1 << 20)
    for sender, receiver in ((client, server), (server, client)):
        sent = 0
        got = bytearray()
        while len(got) < len(data):
            with contextlib.suppress(BlockingIOError):
                sent += sender.send(data[sent : sent + 50_000])
            pair.turns(1)
            with contextlib.suppress(BlockingIOError):
                got += receiver.recv(1 << 16)
        assert got == data


def test_a_stalled_reader_blocks_only_its_own_writer(connected: Any) -> None:
    pair, client, server = connected
    sent = 0
    blocked = 0
    while blocked < 50:
        try:
            sent += client.send(bytes(1 << 16))
            blocked = 0
        except BlockingIOError:
            blocked += 1
        pair.turns(1)
    held = len(pair.far.channels[NUMBER].pending)
    assert 0 < held <= WINDOW_BYTES
    # Beyond the window and what three kernel socket buffers take, nothing was accepted.
    assert sent < WINDOW_BYTES + 3 * (1 << 20)
    server.send(b"still alive")
    assert receive(pair, client, 11) == b"still alive"
    assert len(receive(pair, server, sent)) == sent


def test_one_direction_can_end_before_the_other(connected: Any) -> None:
    pair, client, server = connected
    client.sendall(b"request!")
    client.shutdown(socket.SHUT_WR)
    assert receive(pair, server, 8) == b"request!"
    pair.turns()
    assert server.recv(10) == b""
    server.sendall(b"reply!")
    server.close()
    assert receive(pair, client, 6) == b"reply!"
    pair.turns()
    assert client.recv(10) == b""
    assert not pair.near.channels
    assert not pair.far.channels


@pytest.mark.parametrize("half_first", [False, True])
def test_a_socket_that_is_closed_closes_the_one_at_the_other_end(
    connected: Any, half_first: bool
) -> None:
    """So a server that waits for nothing from its client notices that the client is gone."""
    pair, client, server = connected
    client.sendall(b"request!")
    if half_first:
        client.shutdown(socket.SHUT_WR)
        pair.turns()
        assert not hung_up(server)
    client.close()
    pair.turns()
    assert hung_up(server)
    assert server.recv(10) == b"request!"
    assert not pair.near.channels
    assert not pair.far.channels


def hung_up(stream: socket.socket) -> bool:
    poll = select.poll()
    poll.register(stream, 0)
    return poll.poll(0) == [(stream.fileno(), select.POLLHUP)]


def test_a_broken_sink_ends_the_source(pair: Pair) -> None:
    reader, writer = os.pipe()
    ours, theirs = os.pipe()
    os.close(reader)
    pair.near.add(1, sink=writer)
    pair.far.add(1, source=ours)
    os.write(theirs, b"not read")
    pair.turns()
    assert not pair.near.channels
    assert not pair.far.channels
    with pytest.raises(BrokenPipeError):
        os.write(theirs, b"x")
    os.close(theirs)


def test_data_that_arrives_before_attach_is_kept(pair: Pair) -> None:
    client, near = socket.socketpair()
    server, far = socket.socketpair()
    pair.on_open = lambda number, path: pair.far.reserve(number)
    pair.near.open(NUMBER, "/later", near.detach())
    client.sendall(b"early")
    client.close()
    pair.turns()
    pair.far.attach(NUMBER, far.detach())
    pair.turns()
    with server:
        assert server.recv(10) == b"early"
        assert server.recv(10) == b""


def test_draining_sends_the_rest_of_a_source_and_its_end(pair: Pair) -> None:
    ours, theirs = os.pipe()
    reader, writer = os.pipe()
    pair.near.add(1, sink=writer)
    channel = pair.far.add(1, source=ours)
    os.write(theirs, b"last bytes")
    pair.far.drain_source(channel)
    pair.turns()
    assert os.read(reader, 100) == b"last bytes"
    assert os.read(reader, 100) == b""
    os.close(theirs)
    os.close(reader)


def test_draining_times_out_on_a_stalled_reader(
    connected: Any,
) -> None:
    pair, client, server = connected
    sent = 0
    for _ in range(100):
        with contextlib.suppress(BlockingIOError):
            sent += server.send(bytes(1 << 16))
        pair.turns(1)
    pair.far.drain_source(pair.far.channels[NUMBER], timeout_s=0.2)
    assert not pair.far.channels
    got = len(receive(pair, client, WINDOW_BYTES))
    assert got < sent
    with pytest.raises(BrokenPipeError):
        server.send(b"x")


def test_draining_times_out_on_a_reader_that_takes_little(connected: Any) -> None:
    pair, client, server = connected
    for _ in range(100):
        with contextlib.suppress(BlockingIOError):
            server.send(bytes(1 << 16))
        pair.turns(1)
    ended = threading.Event()

    def dribble() -> None:
        while not ended.is_set():
            with contextlib.suppress(BlockingIOError):
                client.recv(1)
            pair.near.turn(10)

    reader = threading.Thread(target=dribble)
    reader.start()
    begin = time.monotonic()
    pair.far.drain_source(pair.far.channels[NUMBER], timeout_s=0.3)
    assert time.monotonic() - begin < 10
    ended.set()
    reader.join(10)


def test_draining_waits_for_a_slow_reader(connected: Any) -> None:
    pair, client, server = connected
    data = random.Random(3).randbytes(2 << 20)
    client.setblocking(True)
    got = bytearray()

    def read() -> None:
        while piece := client.recv(1 << 14):
            got.extend(piece)

    def serve() -> None:
        while pair.near.channels:
            pair.near.turn(10)

    server.setblocking(True)
    threads = [threading.Thread(target=task) for task in (lambda: server.sendall(data), serve)]
    for thread in threads:
        thread.start()
    while server.fileno() >= 0 and pair.far.channels[NUMBER].credit_bytes:
        pair.far.turn(10)
    reader = threading.Thread(target=read)
    reader.start()
    while threads[0].is_alive():
        pair.far.turn(10)
    server.close()
    pair.far.drain_source(pair.far.channels[NUMBER], timeout_s=5)
    while reader.is_alive():
        pair.far.turn(10)
    client.close()
    threads[1].join(20)
    assert got == data


def test_a_requested_channel_carries_data_after_the_peer_has_replied(pair: Pair) -> None:
    caller, ours = socket.socketpair()
    called, theirs = socket.socketpair()
    requested: list[tuple[int, str]] = []

    def connect(number: int, address: str) -> None:
        requested.append((number, address))
        pair.near.reserve(number)

    pair.on_connect = connect
    pair.far.connect(NUMBER, "tcp:\udcff:1", lambda error: pair.far.attach(NUMBER, ours.detach()))
    pair.turns()
    assert requested == [(NUMBER, "tcp:\udcff:1")]
    caller.sendall(b"early")
    pair.near.reply_connect(NUMBER)
    called.sendall(b"welcome")
    pair.near.attach(NUMBER, theirs.detach())
    pair.turns()
    with caller, called:
        assert called.recv(10) == b"early"
        assert caller.recv(10) == b"welcome"
        caller.close()
        pair.turns()
        assert called.recv(10) == b""


def test_a_refused_channel_frees_its_number(pair: Pair) -> None:
    refusals: list[str] = []

    def refused(error: str) -> None:
        refusals.append(error)
        pair.far.forget(NUMBER)

    def refuse(number: int, address: str) -> None:
        pair.near.reply_connect(number, "no" * 10_000)

    pair.on_connect = refuse
    for _ in range(2):
        pair.far.connect(NUMBER, "tcp:h:1", refused)
        pair.turns()
    assert refusals == ["no" * (MAX_NAME_BYTES // 2)] * 2
    assert not pair.far.channels


def test_an_abandoned_channel_ends_at_both_ends(connected: Any) -> None:
    pair, client, server = connected
    server.sendall(b"last bytes")
    pair.turns()
    client.sendall(b"on their way")
    pair.far.abandon(NUMBER)
    pair.turns()
    assert client.recv(20) == b"last bytes"
    assert client.recv(20) == b""
    assert server.recv(20) == b""
    assert not pair.near.channels
    assert not pair.far.channels


def test_a_new_stream_gets_a_turn_among_busy_ones(pair: Pair) -> None:
    """The link takes little at a time, so its buffer is always full."""
    pair.links[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    clients, servers = [], []

    def attach(number: int, _path: str) -> None:
        server, ours = socket.socketpair()
        server.setblocking(False)
        servers.append(server)
        pair.far.reserve(number)
        pair.far.attach(number, ours.detach())

    pair.on_open = attach
    for number in range(NUMBER, NUMBER + 4):
        client, ours = socket.socketpair()
        client.setblocking(False)
        clients.append(client)
        pair.near.open(number, "/socket", ours.detach())
    pair.turns(4)

    def stream() -> None:
        for client, server in zip(clients[:-1], servers, strict=False):
            with contextlib.suppress(BlockingIOError):
                client.send(bytes(1 << 18))
            with contextlib.suppress(BlockingIOError):
                assert server.recv(1 << 18)
        pair.turns(1)

    for _ in range(200):
        stream()
    clients[-1].send(b"x")
    for _ in range(200):
        stream()
        with contextlib.suppress(BlockingIOError):
            assert servers[-1].recv(1) == b"x"
            break
    else:
        raise AssertionError("the new stream got no turn")
    for end in (*clients, *servers):
        end.close()


def test_control_messages_arrive_in_order(pair: Pair) -> None:
    pair.near.send_control({"first": 1})
    pair.near.send_control({"second": [2]})
    pair.turns()
    assert pair.messages[1] == [{"first": 1}, {"second": [2]}]


@pytest.mark.parametrize(
    "bad",
    [
        encode(Frame(FrameType.CONTROL, 0, b"[1]")),
        encode(Frame(FrameType.CONTROL, 0, b"\xff{")),
        encode(Frame(FrameType.CONNECT, 5, b"tcp:not.served.here:1")),
        encode(Frame(FrameType.CONNECTED, 5)),
        b"\xee" * 8,
    ],
)
def test_malformed_or_unexpected_frames_are_errors(pair: Pair, bad: bytes) -> None:
    pair.links[0].send(bad)
    with pytest.raises(FrameError):
        pair.far.turn(0)


def test_open_is_an_error_where_it_is_not_served(pair: Pair) -> None:
    pair.links[1].send(encode(Frame(FrameType.OPEN, 5, b"/not/served/here")))
    with pytest.raises(FrameError):
        pair.near.turn(0)


def test_connected_is_an_error_for_a_channel_that_was_not_requested(pair: Pair) -> None:
    pair.far.reserve(NUMBER)
    pair.links[0].send(encode(Frame(FrameType.CONNECTED, NUMBER)))
    with pytest.raises(FrameError, match="not connecting"):
        pair.far.turn(0)


def test_a_request_for_a_channel_in_use_is_an_error(pair: Pair) -> None:
    pair.far.reserve(NUMBER)
    pair.links[0].send(encode(Frame(FrameType.OPEN, NUMBER, b"/path")))
    with pytest.raises(FrameError, match="in use"):
        pair.far.turn(0)


def test_data_beyond_its_credit_is_refused(pair: Pair) -> None:
    pair.far.reserve(NUMBER)
    piece = encode(Frame(FrameType.DATA, NUMBER, bytes(1 << 15)))
    for _ in range(WINDOW_BYTES // (1 << 15)):
        pair.links[0].send(piece)
        pair.far.turn(0)
    pair.links[0].send(piece)
    with pytest.raises(FrameError, match="credit"):
        pair.far.turn(0)


def test_a_closed_link_has_its_own_error(pair: Pair) -> None:
    pair.links[0].close()
    with pytest.raises(LinkClosedError):
        pair.far.turn(0)
