# SPDX-License-Identifier: Apache-2.0
"""A waiting destination finds its source among other connections, and survives those."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import pytest

from pyvmm.migration import messages, source_candidates
from pyvmm.migration.errors import IncomingMigrationFailed, PeerAborted
from pyvmm.migration.incoming import accept_migration
from pyvmm.migration.link import MigrationLink
from pyvmm.migration.progress import MigrationProgress, Settings
from pyvmm.migration.source import SourceMigration
from pyvmm.migration.source_candidates import MAX_CANDIDATES, MAX_REPORTED
from pyvmm.migration.stream import DestinationReader
from pyvmm.migration.timeouts import Timeouts
from pyvmm.sockets.addresses import TcpAddress
from pyvmm.sockets.connect import connect, connect_directly
from pyvmm.sockets.listener import MigrationListener
from pyvmm.sockets.tls import Security, TlsFiles
from tests.pyvmm.blocking.refused_threads import refused_threads
from tests.pyvmm.migration.incoming_vm import EndingVm
from tests.pyvmm.migration.migration_guest import WritingGuest, config_of
from tests.pyvmm.sockets.certificates import certificate

LOCAL = TcpAddress("127.0.0.1", 0)
HELLO = messages.Hello(config_of(64)).record().encode()
UNPROTECTED = Security()
PATIENT = Timeouts(hello=60, message=60, abort=0.2)
"""Longer than a test: nothing may wait for a time-out."""


class Destination:
    """A destination that waits in the event loop of `run`."""

    def __init__(self, security: Security, timeouts: Timeouts) -> None:
        self.created: list[EndingVm] = []
        self.refused: list[str] = []
        self._listener = MigrationListener(LOCAL, security)
        self._timeouts = timeouts
        self.address = self._listener.address

    async def receive(self) -> None:
        """Receive a guest and run it to its end."""

        def make(config: object) -> EndingVm:
            self.created.append(EndingVm(config_of(64)))
            return self.created[-1]

        running = await accept_migration(
            self._listener,
            make,  # type: ignore[arg-type]
            on_refused=lambda error: self.refused.append(str(error)),
            timeouts=self._timeouts,
        )
        await running

    def connect(self) -> socket.socket:
        return connect_directly(self.address)

    def is_listening(self) -> bool:
        try:
            self.connect().close()
        except OSError:
            return False
        return True


Scenario = Callable[[Destination], Coroutine[None, None, None]]


def run(
    scenario: Scenario, security: Security = UNPROTECTED, timeouts: Timeouts = PATIENT
) -> Destination:
    """Run `scenario` while a destination waits, which then has received a guest."""

    async def main() -> Destination:
        destination = Destination(security, timeouts)
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            tasks.create_task(destination.receive())
            tasks.create_task(scenario(destination))
        return destination

    return asyncio.run(main())


def send_guest(destination: Destination, security: Security = UNPROTECTED) -> float:
    """Migrate a guest there; return the seconds that it took."""
    begin = time.monotonic()
    link = MigrationLink(connect(destination.address, security))
    guest = WritingGuest(config_of(64))
    guest.save_parts = list  # type: ignore[method-assign]
    with contextlib.closing(link):
        SourceMigration(guest, link, Settings(), MigrationProgress()).run()
    return time.monotonic() - begin


def reply(link: MigrationLink) -> object:
    replies = DestinationReader()
    while (message := replies.next()) is None:
        data = link.receive(1000)
        assert data, "the destination has closed the connection"
        replies.feed(data)
    return message


@contextlib.contextmanager
def dribbling(stream: socket.socket, data: bytes) -> Iterator[None]:
    """Send `data` byte by byte, until the block ends or the peer closes the connection."""
    ended = threading.Event()

    def send() -> None:
        with contextlib.suppress(OSError):
            for byte in data:
                if ended.wait(0.01):
                    return
                stream.send(bytes([byte]))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.fixture(scope="module")
def certificates() -> Iterator[Callable[[str, str], TlsFiles]]:
    with tempfile.TemporaryDirectory() as directory:
        yield lambda ca, name: certificate(Path(directory), ca, name)


def test_probes_garbage_and_dribblers_do_not_keep_the_source_out() -> None:
    async def scenario(destination: Destination) -> None:
        destination.connect().close()
        garbage, dribbler, silent = (destination.connect() for _ in range(3))
        garbage.send(b"GET / HTTP/1.1\r\n\r\n" * 100)
        with garbage, dribbler, silent, dribbling(dribbler, HELLO * 100):
            while not any("does not send a migration" in text for text in destination.refused):
                await asyncio.sleep(0.01)
            await asyncio.to_thread(send_guest, destination)

    destination = run(scenario)
    assert len(destination.created) == 1
    assert destination.created[0].has_run


def test_silent_tls_connections_do_not_delay_the_source(
    certificates: Callable[[str, str], TlsFiles],
) -> None:
    async def scenario(destination: Destination) -> None:
        with contextlib.ExitStack() as streams:
            for _ in range(6):
                streams.enter_context(destination.connect())
            security = Security(certificates("ca", "source"))
            assert await asyncio.to_thread(send_guest, destination, security) < 10

    run(scenario, Security(certificates("ca", "destination")))


def test_the_oldest_of_too_many_connections_makes_way() -> None:
    async def scenario(destination: Destination) -> None:
        streams = []
        for _ in range(MAX_CANDIDATES + 1):
            streams.append(destination.connect())
            await asyncio.sleep(0.01)
        while not destination.refused:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(send_guest, destination)
        assert streams[0].recv(1000) == b""
        for stream in streams:
            stream.close()

    assert "too many other connections were made before its hello" in run(scenario).refused


def test_a_candidate_has_a_limited_time_for_its_hello() -> None:
    async def scenario(destination: Destination) -> None:
        with destination.connect() as dribbler, dribbling(dribbler, HELLO):
            while not destination.refused:
                await asyncio.sleep(0.01)
        await asyncio.to_thread(send_guest, destination)

    destination = run(scenario, timeouts=Timeouts(hello=0.3, abort=0.3))
    assert len(destination.refused) == 1
    assert re.fullmatch(
        r"the source has not sent a whole message for 0\.\d+ s", destination.refused[0]
    )


@pytest.mark.parametrize("protected", [False, True])
def test_a_silent_candidate_has_a_limited_time_for_its_first_byte(
    certificates: Callable[[str, str], TlsFiles], protected: bool
) -> None:
    security = Security(certificates("ca", "destination")) if protected else UNPROTECTED

    async def scenario(destination: Destination) -> None:
        with destination.connect():
            while not destination.refused:
                await asyncio.sleep(0.01)
        source = Security(certificates("ca", "source")) if protected else UNPROTECTED
        await asyncio.to_thread(send_guest, destination, source)

    destination = run(scenario, security, Timeouts(hello=0.5, abort=0.3))
    assert destination.refused == ["the source has sent nothing for 0.5 s"]


async def connect_strangers(
    destination: Destination, count: int, open_until: contextlib.ExitStack
) -> list[socket.socket]:
    """Connect `count` times, and send nothing."""
    strangers = []
    for _ in range(count):
        strangers.append(open_until.enter_context(destination.connect()))
        await asyncio.sleep(0.005)
    return strangers


class HalfHandshake:
    """A TLS client that has sent its first message over a plain socket."""

    def __init__(self, destination: Destination, files: TlsFiles) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = files.context(server=False)
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")
        self.stream = destination.connect()
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        self.stream.sendall(self._outgoing.read())

    def complete(self) -> bytes:
        """Complete the handshake and say hello; return the answer, or b"" at the end."""
        self._exchange(self._tls.do_handshake)
        self._tls.write(HELLO)
        return self._exchange(lambda: self._tls.read(1000))

    def _exchange(self, step: Callable[[], bytes | None]) -> bytes:
        while True:
            try:
                return step() or b""
            except ssl.SSLWantReadError:
                self.stream.sendall(self._outgoing.read())
                if not (data := self.stream.recv(65536)):
                    return b""
                self._incoming.write(data)


def test_a_source_in_its_handshake_outlasts_connections_that_stay_silent(
    certificates: Callable[[str, str], TlsFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it is older, and the destination has read all that it has sent."""
    monkeypatch.setattr(source_candidates, "SILENCE_S", 0.2)

    async def scenario(destination: Destination) -> None:
        with contextlib.ExitStack() as open_until:
            source = HalfHandshake(destination, certificates("ca", "source"))
            silent = await connect_strangers(destination, MAX_CANDIDATES - 1, open_until)
            await asyncio.sleep(0.5)
            await connect_strangers(destination, MAX_CANDIDATES - 2, open_until)
            await asyncio.sleep(0.1)
            assert await asyncio.to_thread(source.complete) == messages.Welcome().record().encode()
            source.stream.close()
            assert silent[0].recv(1) == b""
            after = Security(certificates("ca", "source"))
            while True:
                with contextlib.suppress(PeerAborted):  # the end of the first is not noticed yet
                    await asyncio.to_thread(send_guest, destination, after)
                    return

    run(scenario, Security(certificates("ca", "destination")))


def test_a_stalled_handshake_does_not_outlast_newer_connections(
    certificates: Callable[[str, str], TlsFiles],
) -> None:
    """Anyone can begin one: the source must not lose its place to those that only stall."""

    async def scenario(destination: Destination) -> None:
        files = certificates("ca", "source")
        with contextlib.ExitStack() as open_until:
            for _ in range(MAX_CANDIDATES):
                open_until.enter_context(HalfHandshake(destination, files).stream)
                await asyncio.sleep(0.005)
            source = open_until.enter_context(destination.connect())  # silent so far
            await connect_strangers(destination, MAX_CANDIDATES - 1, open_until)
            await asyncio.sleep(0.1)
            source.setblocking(False)
            with pytest.raises(BlockingIOError):
                source.recv(1)
            await asyncio.to_thread(send_guest, destination, Security(files))

    run(scenario, Security(certificates("ca", "destination")))


def test_a_source_with_a_certificate_is_never_evicted(
    certificates: Callable[[str, str], TlsFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If all have one, another connection is refused."""
    monkeypatch.setattr(source_candidates, "MAX_CANDIDATES", 2)

    async def scenario(destination: Destination) -> None:
        security = Security(certificates("ca", "source"))
        with contextlib.ExitStack() as open_until:
            links = []
            for _ in range(2):
                links.append(await asyncio.to_thread(connect, destination.address, security))
                open_until.callback(links[-1].close)
                await asyncio.sleep(0.1)
            (stranger,) = await connect_strangers(destination, 1, open_until)
            await asyncio.sleep(0.1)
            assert stranger.recv(1) == b""
            assert destination.refused == ["there were too many other connections"]
            links[0].send(HELLO)
            assert await asyncio.to_thread(reply, MigrationLink(links[0])) == messages.Welcome()
        while len(destination.refused) < 3:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(send_guest, destination, security)

    run(scenario, Security(certificates("ca", "destination")))


def test_a_second_source_is_refused_while_the_first_is_served() -> None:
    async def scenario(destination: Destination) -> None:
        first = MigrationLink(connect(destination.address, Security()))
        first.send(HELLO)
        assert await asyncio.to_thread(reply, first) == messages.Welcome()
        with pytest.raises(PeerAborted, match="another source is already sending its guest"):
            await asyncio.to_thread(send_guest, destination)
        first.close()
        while not destination.refused:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(send_guest, destination)

    destination = run(scenario)
    assert [vm.has_run for vm in destination.created] == [False, True]


def test_the_destination_ends_when_a_source_fails_after_its_first_state() -> None:
    async def scenario(destination: Destination) -> None:
        source = MigrationLink(connect(destination.address, Security()))
        source.send(HELLO)
        assert await asyncio.to_thread(reply, source) == messages.Welcome()
        assert destination.is_listening()
        source.send(messages.RoundEnd(1).record().encode())
        while destination.is_listening():
            await asyncio.sleep(0.01)
        source.close()

    with pytest.raises(ExceptionGroup) as raised:
        run(scenario)
    (error,) = raised.value.exceptions
    assert isinstance(error, IncomingMigrationFailed)


def test_failures_are_reported_ever_more_rarely() -> None:
    async def scenario(destination: Destination) -> None:
        for _ in range(4 * MAX_REPORTED):
            destination.connect().close()
            await asyncio.sleep(0.005)
        await asyncio.to_thread(send_guest, destination)

    assert len(run(scenario).refused) in range(MAX_REPORTED, MAX_REPORTED + 4)


@pytest.mark.parametrize("greeted", [False, True])
def test_a_repeated_cancellation_ends_the_wait_at_once(greeted: bool) -> None:
    """With a connection that is silent, and with a source that is being served."""
    unhandled: list[object] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: unhandled.append(context))
        destination = Destination(Security(), PATIENT)
        waiting = asyncio.create_task(destination.receive())
        await asyncio.sleep(0)
        link = MigrationLink(connect(destination.address, Security()))
        if greeted:
            link.send(HELLO)
            assert await asyncio.to_thread(reply, link) == messages.Welcome()
        else:
            await asyncio.sleep(0.05)
        for _ in range(3):
            waiting.cancel()
            await asyncio.sleep(0.001)
        begin = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert time.monotonic() - begin < 2
        assert not destination.is_listening()
        link.close()

    before = threading.active_count()
    asyncio.run(main())
    while threading.active_count() > before:
        time.sleep(0.01)
    assert unhandled == []


def test_a_connection_for_which_there_is_no_thread_is_refused() -> None:
    async def scenario(destination: Destination) -> None:
        with destination.connect(), destination.connect() as second, refused_threads():
            second.setblocking(False)
            assert await asyncio.get_running_loop().sock_recv(second, 1) == b""
        await asyncio.to_thread(send_guest, destination)

    destination = run(scenario)
    assert destination.refused[0] == "the host lets this process start no more threads"
    assert len(destination.created) == 1


def test_the_first_source_waits_for_no_thread_to_be_started() -> None:
    async def scenario(destination: Destination) -> None:
        loop = asyncio.get_running_loop()
        with destination.connect() as source, refused_threads():
            source.setblocking(False)
            await loop.sock_sendall(source, HELLO)
            assert (await loop.sock_recv(source, 1000)).startswith(b"welcome")
        while not destination.refused:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(send_guest, destination)

    assert len(run(scenario).created) == 2


def test_a_connection_without_a_second_descriptor_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TLS takes one of the two over."""

    def refuse(stream: socket.socket) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def scenario(destination: Destination) -> None:
        unhandled = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: unhandled.append(context))
        with destination.connect() as one, monkeypatch.context() as patches:
            patches.setattr(socket.socket, "dup", refuse)
            one.setblocking(False)
            assert await loop.sock_recv(one, 1) == b""
        await asyncio.to_thread(send_guest, destination)
        assert unhandled == []

    destination = run(scenario)
    assert destination.refused == ["the connection cannot be served: Too many open files"]


def test_no_candidate_makes_way_for_one_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were evicted before may be slow to end."""
    monkeypatch.setattr(source_candidates, "MAX_CANDIDATES", 2)

    async def scenario(destination: Destination) -> None:
        with contextlib.ExitStack() as open_until, monkeypatch.context() as patches:
            patches.setattr(source_candidates, "shut_down", lambda handle: None)
            strangers = await connect_strangers(destination, 4, open_until)  # two are evicted
            await asyncio.sleep(0.1)
            (refused,) = await connect_strangers(destination, 1, open_until)
            await asyncio.sleep(0.1)
            assert refused.recv(1) == b""
            strangers[2].sendall(HELLO)
            welcome = messages.Welcome().record().encode()
            assert await asyncio.to_thread(strangers[2].recv, 1000) == welcome
        while len(destination.refused) < 5:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(send_guest, destination)

    destination = run(scenario)
    assert destination.refused[0] == "there were too many other connections"
