# SPDX-License-Identifier: Apache-2.0
"""A connection joins a migration as a stream with its token; a stranger does not."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvmm.migration import messages
from pyvmm.migration.destination import DestinationMigration
from pyvmm.migration.destination_channel import LastMessage
from pyvmm.migration.errors import IncomingMigrationFailed, MigrationError, PeerAborted
from pyvmm.migration.link import MigrationLink
from pyvmm.migration.progress import MigrationProgress, Settings
from pyvmm.migration.source import SourceMigration
from pyvmm.migration.source_candidates import MAX_CANDIDATES, Candidate
from pyvmm.migration.stream_receivers import StreamReceivers
from pyvmm.migration.timeouts import Timeouts
from pyvmm.qmp.migration_commands import MAX_CHANNELS
from pyvmm.sockets.connect import Connector, connect
from pyvmm.sockets.tls import Security, TlsFiles
from pyvmm.state.records import Record
from tests.pyvmm.migration.migration_guest import FakeTarget, PageWrite, WritingGuest, config_of
from tests.pyvmm.migration.test_source_candidates import Destination, reply, run
from tests.pyvmm.migration.test_stream_versions import RecordedLink, recorded
from tests.pyvmm.sockets.certificates import certificate

UNPROTECTED = Security()
STREAMS = 2
TOKEN = bytes(messages.TOKEN_BYTES)
Certificates = Callable[[str, str], TlsFiles]


@pytest.fixture(scope="module")
def certificates() -> Iterator[Certificates]:
    with tempfile.TemporaryDirectory() as directory:
        yield lambda ca, name: certificate(Path(directory), ca, name)


def send_guest(
    destination: Destination,
    security: Security = UNPROTECTED,
    *,
    streams: int = STREAMS,
    before_stream: Callable[[], None] = lambda: None,
    security_of_streams: Security | None = None,
) -> MigrationProgress:
    """Migrate a guest over `streams`; `before_stream` is called before each is connected."""
    link = MigrationLink(connect(destination.address, security))
    further = Connector(destination.address, security_of_streams or security)

    def connect_stream() -> MigrationLink:
        before_stream()
        return MigrationLink(further.connect())

    guest = WritingGuest(config_of(64), [PageWrite(pfn, 5) for pfn in range(0, 8000, 100)])
    guest.save_parts = list  # type: ignore[method-assign]
    progress, settings = MigrationProgress(), Settings(streams=streams)
    with contextlib.closing(link):
        SourceMigration(guest, link, settings, progress, connect=connect_stream).run()
    return progress


def stream_hello(token: bytes = TOKEN, number: int = 1) -> bytes:
    return messages.StreamHello(token, number).record().encode()


@pytest.mark.parametrize("streams", [2, messages.MAX_STREAMS])
def test_a_guest_arrives_at_a_waiting_destination_over_streams(streams: int) -> None:
    async def scenario(destination: Destination) -> None:
        progress = await asyncio.to_thread(send_guest, destination, streams=streams)
        assert progress.full_pages == 80

    destination = run(scenario)
    assert destination.refused == []
    assert [vm.has_run for vm in destination.created] == [True]


def test_streams_have_tls_with_certificates_on_both_sides(certificates: Certificates) -> None:
    async def scenario(destination: Destination) -> None:
        security = Security(certificates("ca", "source"))
        await asyncio.to_thread(send_guest, destination, security)

    destination = run(scenario, Security(certificates("ca", "destination")))
    assert destination.refused == []


@pytest.mark.parametrize("stranger", ["no TLS", "another CA"])
def test_a_stream_that_tls_refuses_does_not_join(certificates: Certificates, stranger: str) -> None:
    others = {"no TLS": Security(), "another CA": Security(certificates("other", "stranger"))}
    timeouts = Timeouts(hello=1, abort=0.2)

    async def scenario(destination: Destination) -> None:
        security = Security(certificates("ca", "source"))
        with pytest.raises(MigrationError):
            await asyncio.to_thread(
                send_guest, destination, security, security_of_streams=others[stranger]
            )
        while all("TLS failed" in text for text in destination.refused):  # it has not aborted yet
            await asyncio.sleep(0.01)
        await asyncio.to_thread(send_guest, destination, security)

    destination = run(scenario, Security(certificates("ca", "destination")), timeouts)
    assert any("TLS failed" in text for text in destination.refused)
    assert [vm.has_run for vm in destination.created] == [False, True]


def test_strangers_do_not_disturb_the_streams_that_join() -> None:
    """Before each stream: silence, garbage, a wrong token, another source."""
    strangers: list[socket.socket] = []

    async def scenario(destination: Destination) -> None:
        def disturb() -> None:
            for data in (b"", b"GET / HTTP/1.1\r\n\r\n" * 100, stream_hello()):
                strangers.append(destination.connect())
                strangers[-1].sendall(data)

        await asyncio.to_thread(send_guest, destination, before_stream=disturb)

    destination = run(scenario)
    for stranger in strangers:
        stranger.close()
    assert [vm.has_run for vm in destination.created] == [True]
    assert "a stream has the wrong token" in destination.refused


def test_a_stranger_is_told_the_reason_and_only_its_connection_is_closed() -> None:
    async def scenario(destination: Destination) -> None:
        stranger = MigrationLink(connect(destination.address, UNPROTECTED))
        stranger.send(stream_hello())
        answer = await asyncio.to_thread(reply, stranger)
        assert answer == messages.Failed("no stream is awaited")
        assert await asyncio.to_thread(stranger.receive, 1) == b""
        stranger.close()
        await asyncio.to_thread(send_guest, destination)

    assert run(scenario).refused == ["no stream is awaited"]


@pytest.mark.parametrize(
    ("forge", "number", "reason"),
    [
        (True, 1, "a stream has the wrong token"),
        (False, 0, "a stream has number 0, of 2"),
        (False, 3, "a stream has number 3, of 2"),
        (False, 1, "stream 1 has joined already"),
    ],
)
def test_only_the_streams_that_were_asked_for_are_admitted(
    forge: bool, number: int, reason: str
) -> None:
    async def scenario(destination: Destination) -> None:
        source = MigrationLink(connect(destination.address, UNPROTECTED))
        source.send(messages.Hello(config_of(64), streams=2).record().encode())
        welcome = await asyncio.to_thread(reply, source)
        assert isinstance(welcome, messages.Welcome)
        streams = [MigrationLink(connect(destination.address, UNPROTECTED)) for _ in range(2)]
        streams[0].send(stream_hello(welcome.token))
        await asyncio.sleep(0.1)
        streams[1].send(stream_hello(TOKEN if forge else welcome.token, number))
        assert await asyncio.to_thread(reply, streams[1]) == messages.Failed(reason)
        source.close()
        while len(destination.refused) < 2:
            await asyncio.sleep(0.01)
        for stream in streams:
            stream.close()
        await asyncio.to_thread(send_guest, destination)

    destination = run(scenario)
    assert destination.refused[0] == reason
    assert [vm.has_run for vm in destination.created] == [False, True]


@pytest.mark.parametrize("read", [True, False])
def test_a_stream_whose_hello_has_arrived_does_not_make_way_for_strangers(
    read: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When one connection too many comes, its thread has `read` the hello or has yet to run."""
    await_bytes = Candidate.await_bytes
    entered, may_read = threading.Event(), threading.Event()

    def await_late(self: Candidate, within_s: float) -> None:
        monkeypatch.setattr(Candidate, "await_bytes", await_bytes)
        entered.set()
        may_read.wait(10)
        await_bytes(self, within_s)

    async def scenario(destination: Destination) -> None:
        source = MigrationLink(connect(destination.address, UNPROTECTED))
        source.send(messages.Hello(config_of(64), streams=2).record().encode())
        welcome = await asyncio.to_thread(reply, source)
        assert isinstance(welcome, messages.Welcome)
        monkeypatch.setattr(Candidate, "await_bytes", await_late)
        streams = [MigrationLink(connect(destination.address, UNPROTECTED))]
        await asyncio.to_thread(entered.wait, 10)
        strangers = []
        for _ in range(MAX_CANDIDATES - 1):
            strangers.append(destination.connect())
            await asyncio.sleep(0.01)
        streams[0].send(stream_hello(welcome.token, 1))
        strangers.append(destination.connect())
        if read:
            may_read.set()
            time.sleep(0.2)  # the event loop is busy, the thread is not
        await asyncio.sleep(0.2)
        may_read.set()
        streams.append(MigrationLink(connect(destination.address, UNPROTECTED)))
        streams[1].send(stream_hello(welcome.token, 2))
        joined = messages.StreamsJoined().record().encode()
        assert await asyncio.to_thread(source.receive, len(joined)) == joined
        for link in (source, *streams):
            link.send(messages.RoundEnd(1).record().encode())
        acknowledged = messages.RoundAck(1).record().encode()
        assert await asyncio.to_thread(source.receive, len(acknowledged)) == acknowledged
        for link in (source, *streams):
            link.close()
        for stranger in strangers:
            stranger.close()

    with pytest.raises(ExceptionGroup, match="unhandled") as raised:
        run(scenario)
    (error,) = raised.value.exceptions
    assert isinstance(error, IncomingMigrationFailed), error


def test_streams_have_a_limited_time_to_join() -> None:
    """The source is told how many are missing, and the destination waits for another."""

    async def scenario(destination: Destination) -> None:
        source = MigrationLink(connect(destination.address, UNPROTECTED))
        source.send(messages.Hello(config_of(64), streams=3).record().encode())
        welcome = await asyncio.to_thread(reply, source)
        assert isinstance(welcome, messages.Welcome)
        stream = MigrationLink(connect(destination.address, UNPROTECTED))
        stream.send(stream_hello(welcome.token))
        answer = await asyncio.to_thread(reply_after_welcome, source)
        assert answer == messages.Failed("1 of 3 streams have joined within 0.4 s")
        source.close()
        stream.close()
        await refused(destination)
        await asyncio.to_thread(send_guest, destination)

    destination = run(scenario, timeouts=Timeouts(hello=0.4, abort=0.2))
    assert destination.refused == ["1 of 3 streams have joined within 0.4 s"]


def reply_after_welcome(link: MigrationLink) -> object:
    """Return the reply after one of `reply`."""
    size = len(messages.Failed("1 of 3 streams have joined within 0.4 s").record().encode())
    data = b""
    while len(data) < size:
        data += link.receive(size - len(data))
    return messages.Failed(data[52:].decode())


def test_a_source_that_ends_while_its_streams_join_is_noticed_at_once() -> None:
    async def scenario(destination: Destination) -> None:
        source = MigrationLink(connect(destination.address, UNPROTECTED))
        source.send(messages.Hello(config_of(64), streams=2).record().encode())
        assert await asyncio.to_thread(reply, source)
        source.close()
        await refused(destination)
        await asyncio.to_thread(send_guest, destination)

    run(scenario)


async def refused(destination: Destination) -> None:
    """Wait until `destination` has refused a source, and so waits for another."""
    async with asyncio.timeout(5):
        while not destination.refused:
            await asyncio.sleep(0.01)


def test_the_destination_ends_at_once_while_streams_join_or_send() -> None:
    """As after SIGTERM; no thread is left."""

    async def main(joined: int) -> None:
        destination = Destination(UNPROTECTED, Timeouts(hello=60, message=60, abort=0.2))
        waiting = asyncio.create_task(destination.receive())
        await asyncio.sleep(0)
        source = MigrationLink(connect(destination.address, UNPROTECTED))
        source.send(messages.Hello(config_of(64), streams=2).record().encode())
        welcome = await asyncio.to_thread(reply, source)
        assert isinstance(welcome, messages.Welcome)
        streams = []
        for number in range(1, joined + 1):
            streams.append(MigrationLink(connect(destination.address, UNPROTECTED)))
            streams[-1].send(stream_hello(welcome.token, number))
        await asyncio.sleep(0.2)
        if joined == 2:
            source.send(messages.RoundEnd(1).record().encode())  # waits at the barrier
            await asyncio.sleep(0.1)
        waiting.cancel()
        async with asyncio.timeout(2):
            with pytest.raises(asyncio.CancelledError):
                await waiting
        for link in (source, *streams):
            link.close()

    for joined in (0, 1, 2):
        asyncio.run(main(joined))


class ClosingLink(RecordedLink):
    """Calls `on_close` when it is closed, and `on_abort` when it is aborted."""

    def __init__(self, on_close: Callable[[], None], on_abort: Callable[[], None]) -> None:
        super().__init__(b"")
        self._on_close = on_close
        self._on_abort = on_abort

    def close(self) -> None:
        self._on_close()

    def abort(self) -> None:
        self._on_abort()


def test_streams_may_be_aborted_while_they_are_closed() -> None:
    """As by a signal when the migration has failed just before."""
    errors: list[RuntimeError] = []
    closing, aborting, ended = (threading.Event() for _ in range(3))

    def abort() -> None:
        try:
            receivers.abort()
        except RuntimeError as error:
            errors.append(error)

    def close() -> None:
        if not closing.is_set():
            closing.set()
            aborter.start()
            aborting.wait(0.1)

    def wait_for_end() -> None:
        if closing.is_set():
            aborting.set()
            ended.wait(5)

    receivers = StreamReceivers(RecordedLink(b""), LastMessage())
    aborter = threading.Thread(target=abort)
    token = receivers.expect(STREAMS)
    for number in (1, 2):
        receivers.admit(messages.StreamHello(token, number), ClosingLink(close, wait_for_end))
    receivers.end()
    ended.set()
    aborter.join()
    assert errors == []


# --- Versions -------------------------------------------------------------------------------------
def test_a_destination_that_has_no_streams_refuses_and_the_guest_stays() -> None:
    guest = WritingGuest(config_of(64))
    link = RecordedLink(recorded("v3.refusal"))
    source = SourceMigration(
        guest, link, Settings(streams=2), MigrationProgress(), connect=lambda: link
    )
    with pytest.raises(PeerAborted, match=r"sends version 4 .* this pyvmm reads versions 2 to 3"):
        source.run()
    assert guest.running


def test_one_stream_is_the_stream_of_version_3() -> None:
    config = config_of(64)
    assert messages.Hello(config, streams=1).record().version == 3
    assert messages.Hello(config, streams=2).record().version == 4
    assert messages.Welcome().record() == Record("welcome", 1, b"")


def test_more_streams_than_there_may_be_are_refused() -> None:
    assert MAX_CHANNELS == messages.MAX_STREAMS
    target = FakeTarget()
    hello = messages.Hello(config_of(64), streams=messages.MAX_STREAMS + 1)
    with pytest.raises(MigrationError, match="has 1 to 16 streams, not 17"):
        DestinationMigration(target, RecordedLink(hello.record().encode())).run()
    assert target.ram is None


def test_a_first_connection_that_is_a_stream_is_refused() -> None:
    link = RecordedLink(stream_hello())
    with pytest.raises(MigrationError, match="a stream has no migration here"):
        DestinationMigration(FakeTarget(), link).run()


def test_a_source_that_can_connect_once_only_has_one_stream() -> None:
    guest = WritingGuest(config_of(64))
    with pytest.raises(MigrationError, match="one connection to the destination, so one stream"):
        SourceMigration(guest, RecordedLink(b""), Settings(streams=2), MigrationProgress())
