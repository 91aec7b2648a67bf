# SPDX-License-Identifier: Apache-2.0
"""The streams of a migration at its destination: admit their connections, receive their pages.

With several streams, pages travel on connections of their own. One joins by the token that the
source has been given over its first, authenticated connection. Each has a thread, which does little
but wait for a native call that fills RAM.

A round ends on all streams before the next begins, so that no page is overwritten by an older copy
of it: at "round-end" each thread waits at a barrier for all others, and for the migration's thread,
which then acknowledges the round. A thread that fails breaks the barrier, ends the other streams,
and ends the input of the first connection, in case the migration's thread waits there.
"""

from __future__ import annotations

import hmac
import threading
from os import urandom
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.blocking.thread_limit import thread_limit_reported
from pyvmm.migration.destination_channel import DestinationChannel
from pyvmm.migration.errors import MigrationError
from pyvmm.migration.messages import TOKEN_BYTES, Pages
from pyvmm.migration.stream import StreamReader
from pyvmm_native.checksum import Checksum

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.migration.destination_channel import LastMessage
    from pyvmm.migration.link import Link
    from pyvmm.migration.messages import StreamHello
    from pyvmm_native.memory import GuestMemory
    from pyvmm_native.runs import PageRuns


class IncomingPages(NamedTuple):
    """The memory for the pages of all streams, and how to receive them."""

    memory: GuestMemory
    ram: PageRuns
    """The pages that a source may name."""
    checksum: str
    message_s: float
    """The longest time for one message."""
    on_first: Callable[[], None]
    """Called when the first message of a stream has arrived. Threads: stream receiver."""


class StreamReceivers:
    """The streams of the migration whose first connection is `link`.

    Threads: migration; `admit` and `abort` any.
    """

    def __init__(self, link: Link, last: LastMessage) -> None:
        self._link = link
        self._last = last
        self._changed = threading.Condition()
        self._token = b""
        self._awaited = 0
        self._links: dict[int, Link] = {}
        self._barrier = threading.Barrier(1)
        self._ended = False
        self._failure: MigrationError | None = None
        self._threads: list[threading.Thread] = []
        self._received: dict[int, int] = {}

    @property
    def failure(self) -> MigrationError | None:
        """The reason why the first stream has failed that did."""
        return self._failure

    # --- Join -----------------------------------------------------------------------------------
    def expect(self, count: int) -> bytes:
        """Await streams numbered from 1 to `count`; return the token that they join with."""
        with self._changed:
            self._token, self._awaited = urandom(TOKEN_BYTES), count
            self._barrier = threading.Barrier(count + 1)
            return self._token

    def admit(self, hello: StreamHello, link: Link) -> None:
        """Take over `link`, whose first message was `hello`.

        Raises `MigrationError` unless it is a stream that is awaited.
        """
        with self._changed:
            if not self._awaited or self._ended:
                raise MigrationError("no stream is awaited")
            if not hmac.compare_digest(hello.token, self._token):
                raise MigrationError("a stream has the wrong token")
            if not 1 <= hello.number <= self._awaited:
                raise MigrationError(f"a stream has number {hello.number}, of {self._awaited}")
            if hello.number in self._links:
                raise MigrationError(f"stream {hello.number} has joined already")
            self._links[hello.number] = link
            self._changed.notify_all()

    def wait_joined(self, within_s: float) -> int:
        """Wait for all streams, but no longer than `within_s`; return how many have joined."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._ended or len(self._links) == self._awaited, within_s
            )
            return len(self._links)

    # --- Receive --------------------------------------------------------------------------------
    def start(self, incoming: IncomingPages) -> None:
        """Receive pages, each stream in a thread; all streams have joined.

        Raises `ThreadNotStarted`.
        """
        for number in self._links:
            self._received[number] = 0
            thread = threading.Thread(
                target=self._run, args=(number, incoming), name=f"stream-receiver-{number}"
            )
            thread.daemon = True
            with thread_limit_reported():
                thread.start()
            self._threads.append(thread)

    def end_round(self) -> None:
        """Wait until the round has ended on all streams. Raises `MigrationError` if one fails.

        The wait has no limit of its own: each stream has one, and a stream that fails ends it.
        """
        try:
            self._barrier.wait()
        except threading.BrokenBarrierError:
            raise self._failure or MigrationError("the migration was aborted") from None

    def end(self) -> int:
        """End all streams; return the number of pages that they have brought.

        Nothing is written to memory afterwards.
        """
        self.abort()
        for thread in self._threads:
            thread.join()
        with self._changed:  # `abort` may be using them
            for link in self._links.values():
                link.close()
            self._links.clear()
        return sum(self._received.values())

    def abort(self) -> None:
        """Make the threads end, and the migration's if it waits for them. Threads: any."""
        with self._changed:
            self._ended = True
            self._break()

    def _run(self, number: int, incoming: IncomingPages) -> None:
        try:
            self._receive(number, incoming)
        except threading.BrokenBarrierError:
            pass  # another has failed, or all are to end
        except MigrationError as error:
            self._fail(f"stream {number}: {error}")
        except Exception as error:
            self._fail(f"stream {number} has a bug: {error!r}")

    def _receive(self, number: int, incoming: IncomingPages) -> None:
        """Receive until this raises. Threads: stream receiver."""
        memory, message_s = incoming.memory, incoming.message_s
        link = self._links[number]
        channel = DestinationChannel(link, StreamReader(incoming.ram), self._last)
        pages = link.pages(memory, Checksum(incoming.checksum))
        message = channel.receive(message_s)
        incoming.on_first()
        while True:
            if isinstance(message, Pages):
                self._received[number] += channel.receive_pages(memory, pages, message)
            else:
                self._barrier.wait()
            message = channel.receive(message_s)

    def _fail(self, reason: str) -> None:
        with self._changed:
            if self._ended or self._failure is not None:
                return
            self._failure = MigrationError(reason)
            self._break()
        self._link.end_input()

    def _break(self) -> None:
        """End all waits for a stream; the caller holds the lock."""
        self._barrier.abort()
        for link in self._links.values():
            link.abort()
        self._changed.notify_all()
