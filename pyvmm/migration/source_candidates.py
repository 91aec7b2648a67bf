# SPDX-License-Identifier: Apache-2.0
"""Connections at a waiting destination, each of which may become the source of its guest.

Anyone can connect to a TCP port: port scanners, health checks, people with the wrong address. So a
connection is the source only when it has passed the TLS handshake and sent a valid hello. Each has
a thread for that, and `Timeouts.hello` in all, however slowly it sends. At most `MAX_CANDIDATES`
are served at once. The oldest makes way for another, so that none keeps the source out; before it
one that has sent nothing for `SILENCE_S`, and after it one whose bytes wait to be read here. None
does once it has passed the TLS handshake, for which it needs a certificate, or its hello has
arrived, which may be a stream of the migration: if all have, another is refused. The first hello is
served; others are refused with an error meanwhile. A connection whose first message is the hello of
a stream joins the migration that is being served, if that one admits it. When the first state of a
guest has arrived from its source, the destination stops listening.
"""

from __future__ import annotations

import asyncio
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from pyvmm.blocking.in_thread import Worker, call_in_thread
from pyvmm.errors import ThreadNotStarted
from pyvmm.migration.destination import DestinationMigration, Target
from pyvmm.migration.errors import MigrationError
from pyvmm.migration.link import MigrationLink
from pyvmm.migration.messages import MAX_STREAMS, StreamHello
from pyvmm.migration.timeouts import Timeouts
from pyvmm.sockets.acceptor import Acceptor
from pyvmm.sockets.errors import HandshakeFailed
from pyvmm.sockets.link import shut_down
from pyvmm.sockets.listener import MigrationListener

MAX_CANDIDATES = 16 + MAX_STREAMS
SILENCE_S = 1.0
"""A source sends its first bytes as soon as it is connected."""
MAX_REPORTED = 10
"""Failures beyond these are reported when their number is a power of two."""
_LEAST_S = 0.001
_BUSY = "another source is already sending its guest"
_FULL = "there were too many other connections"

OnRefused = Callable[[MigrationError], None]
"""Called with the reason why a connection was not, or is no longer, the source."""


class Source(NamedTuple):
    """A connection whose hello has arrived."""

    link: MigrationLink
    migration: DestinationMigration
    stream: StreamHello | None = None
    """Its hello, if it is a stream of another connection's migration."""


class Candidate:
    """The connection `handle`, whose hello is awaited.

    Threads: event loop; `await_bytes`, `keep` and `raise_evicted` migration-hello.
    """

    def __init__(self, handle: socket.socket) -> None:
        self.handle = handle
        self._silent_since: float | None = time.monotonic()
        self._lock = threading.Lock()
        self._kept = False
        self._evicted = False

    @property
    def silent_s(self) -> float:
        """Seconds for which it has sent nothing at all; 0 once it has."""
        since = self._silent_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def evicted(self) -> bool:
        """It had to make way, and its thread is about to end."""
        return self._evicted

    def await_bytes(self, within_s: float) -> None:
        """Wait for the first bytes, or the end of the connection.

        Raises `MigrationError` after `within_s`.
        """
        poll = select.poll()
        poll.register(self.handle, select.POLLIN)
        if not poll.poll(within_s * 1000):
            raise MigrationError(f"the source has sent nothing for {within_s:.3g} s")
        self._silent_since = None

    def keep(self) -> None:
        """Never evict it from now on. Raises `MigrationError` if it had to make way before."""
        with self._lock:
            self.raise_evicted()
            self._kept = True

    def raise_evicted(self) -> None:
        """Raise `MigrationError` if the connection had to make way."""
        if self._evicted:
            raise MigrationError("too many other connections were made before its hello")

    def evict(self) -> bool:
        """Break the connection and return True, unless it is kept or already broken."""
        with self._lock:
            if self._kept or self._evicted:
                return False
            self._evicted = True
            shut_down(self.handle)
            return True


class SourceCandidates:
    """The connections at `listener`, whose guest `target` is to receive.

    Raises `ThreadNotStarted`: the thread of the first connection is started before it comes.

    Threads: event loop.
    """

    def __init__(
        self,
        listener: MigrationListener,
        target: Target,
        timeouts: Timeouts,
        on_refused: OnRefused,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._target = target
        self._timeouts = timeouts
        self._on_refused = on_refused
        self._refused = 0
        self._waiting: Worker | None = Worker("migration-hello")
        self._candidates: dict[asyncio.Future[Source], Candidate] = {}  # the oldest is first
        self._next: asyncio.Future[Source] | None = None
        self._serving: DestinationMigration | None = None
        self.closed = False
        """State has arrived, or nothing is waited for any more."""
        self._acceptors: list[Acceptor] = []
        for listening in listener.sockets:
            acceptor = Acceptor(listening, "migration source")
            self._acceptors.append(acceptor)
            self._loop.add_reader(listening, self._accept, acceptor)

    async def next(self) -> Source:
        """Wait, without a time limit, for the next source; others are refused from then on."""
        self._next = self._loop.create_future()
        try:
            return await self._next
        finally:
            self._next = None

    def close(self) -> None:
        """Stop listening and drop all connections but that of the source."""
        if self.closed:
            return
        self.closed = True
        for listening in self._listener.sockets:
            self._loop.remove_reader(listening)
        for acceptor in self._acceptors:
            acceptor.close()
        if self._waiting is not None:
            self._waiting.end()
        self._listener.close()
        for candidate in self._candidates.values():
            shut_down(candidate.handle)

    def refused(self, error: MigrationError) -> None:
        """Report that a connection is not the source, unless many others were not."""
        self._refused += 1
        if self._refused <= MAX_REPORTED or not self._refused & (self._refused - 1):
            self._on_refused(error)

    def _accept(self, acceptor: Acceptor) -> None:
        stream = acceptor.accept(0, 1)
        if stream is None:
            return
        if not self._make_room():
            stream.close()
            self.refused(MigrationError(_FULL))
            return
        try:
            candidate = Candidate(stream.dup())  # TLS takes `stream` over
        except OSError as error:
            stream.close()
            self.refused(MigrationError(f"the connection cannot be served: {error.strerror}"))
            return
        greet = partial(self._greet, stream, candidate)
        try:
            worker, self._waiting = self._waiting or Worker("migration-hello"), None
        except ThreadNotStarted as error:
            stream.close()
            candidate.handle.close()
            self.refused(MigrationError(str(error)))
            return
        greeting = worker.call(greet, discard=_refuse_and_close)
        worker.end()
        self._candidates[greeting] = candidate
        greeting.add_done_callback(self._greeted)

    def _make_room(self) -> bool:
        """Evict a candidate if there are too many; return False if none may be evicted.

        Those that were evicted take a moment to end, and are limited in number, too.
        """
        if len(self._candidates) >= 2 * MAX_CANDIDATES:
            return False
        candidates = [each for each in self._candidates.values() if not each.evicted]
        if len(candidates) < MAX_CANDIDATES:
            return True
        readable = select.poll()
        for candidate in candidates:
            readable.register(candidate.handle, select.POLLIN)
        unread = {fd for fd, _ in readable.poll(0)}

        def rank(candidate: Candidate) -> int:
            if candidate.handle.fileno() in unread:
                return 2
            return 0 if candidate.silent_s > SILENCE_S else 1

        return any(candidate.evict() for candidate in sorted(candidates, key=rank))

    def _greet(self, stream: socket.socket, candidate: Candidate) -> Source:
        """Authenticate the peer and receive its hello, in a thread of its own."""
        try:
            return self._receive_hello(stream, candidate)
        except MigrationError:
            candidate.raise_evicted()  # that is why the connection broke
            raise

    def _receive_hello(self, stream: socket.socket, candidate: Candidate) -> Source:
        ends_at = time.monotonic() + self._timeouts.hello
        try:
            candidate.await_bytes(self._timeouts.hello)
        except MigrationError:
            stream.close()
            raise
        try:
            left_s = max(ends_at - time.monotonic(), _LEAST_S)
            link = MigrationLink(self._listener.protect(stream, left_s))
        except HandshakeFailed as error:
            raise MigrationError(str(error)) from error
        migration = DestinationMigration(self._target, link, self._timeouts, self._state_arrived)
        try:
            if self._listener.authenticates:
                candidate.keep()
            hello = migration.receive_hello(max(ends_at - time.monotonic(), _LEAST_S))
            candidate.keep()
        except BaseException:
            link.close()
            raise
        return Source(link, migration, hello)

    def _greeted(self, greeting: asyncio.Future[Source]) -> None:
        self._candidates.pop(greeting).handle.close()
        error = greeting.exception()
        if isinstance(error, MigrationError):
            if not self.closed:
                self.refused(error)
        elif error is not None:
            raise error
        else:
            self._serve(greeting.result())

    def _serve(self, source: Source) -> None:
        if source.stream is not None:
            self._admit(source, source.stream)
        elif self._next is not None and not self._next.done():
            self._serving = source.migration
            self._next.set_result(source)
        else:
            _refuse_in_thread(source)

    def _admit(self, connection: Source, hello: StreamHello) -> None:
        """Have the migration that is being served take the connection over."""
        try:
            if self._serving is None:
                raise MigrationError("no stream is awaited")
            self._serving.streams.admit(hello, connection.link)
        except MigrationError as error:
            if not self.closed:
                self.refused(error)
            _refuse_in_thread(connection, str(error))

    def _state_arrived(self) -> None:
        """Stop listening. Threads: migration."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.close)


def _refuse_in_thread(source: Source, reason: str = _BUSY) -> None:
    """Do as `_refuse_and_close`, or only close the connection if there is no thread for it."""
    try:
        call_in_thread("migration-hello", partial(_refuse_and_close, source, reason))
    except ThreadNotStarted:
        source.link.close()


def _refuse_and_close(source: Source, reason: str = _BUSY) -> None:
    source.migration.refuse(reason)
    source.link.close()
