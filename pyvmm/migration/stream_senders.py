# SPDX-License-Identifier: Apache-2.0
"""The streams of a migration at its source: connect them, deal blocks of pages out to them.

With several streams, pages travel on connections of their own, which join the migration by the
token that the destination has given over the first one. Each has a thread, which does little but
wait for a native call that sends a block. The migration's thread selects the blocks and puts them
into a queue, from which the first thread that is free takes the next one.

A round ends when all of its blocks have been sent: "round-end" then follows on each stream. So no
stream carries a block of the next round before all have carried those of this one, and no two
threads use a connection at once, even if the destination confirms streams that have not joined.

When a stream fails, the migration's thread finds its error at the next call.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from pyvmm.blocking.thread_limit import thread_limit_reported
from pyvmm.migration.errors import MigrationError
from pyvmm.migration.messages import RoundEnd, StreamHello
from pyvmm.migration.page_channel import block_bytes
from pyvmm_native.checksum import Checksum

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.migration.link import Link
    from pyvmm.migration.source_channel import SourceChannel
    from pyvmm_native.memory import GuestMemory


class StreamSenders:
    """`count` streams, which `connect` makes, and which carry pages of `memory`.

    `channel` is that of the first connection.

    Threads: migration; `abort` any.
    """

    def __init__(
        self,
        count: int,
        connect: Callable[[], Link],
        memory: GuestMemory,
        channel: SourceChannel,
    ) -> None:
        self._count = count
        self._connect = connect
        self._memory = memory
        self._channel = channel
        lock = threading.Lock()  # for all below
        self._dealt = threading.Condition(lock)
        """Notified of blocks in the queue."""
        self._taken = threading.Condition(lock)
        """Notified of blocks that were taken from the queue, or sent."""
        self._heads: deque[memoryview] = deque()
        self._unsent = count  # in the queue, or being sent; the hello of each stream, too
        self._links: dict[int, Link] = {}
        self._threads: list[threading.Thread] = []
        self._joining = True
        self._ended = False
        self._failure: tuple[int, Exception] | None = None

    def start(self, token: bytes, checksum: str) -> None:
        """Connect all streams with `token`, each in a thread; pages have `checksum`.

        Raises `ThreadNotStarted`.
        """
        for number in range(1, self._count + 1):
            thread = threading.Thread(
                target=self._run, args=(number, token, checksum), name=f"stream-sender-{number}"
            )
            thread.daemon = True
            with thread_limit_reported():
                thread.start()

    def joined(self) -> None:
        """Note that the destination has all streams. Raises `MigrationError`."""
        with self._taken:
            self._joining = False
        self.raise_failure()

    def send(self, head: memoryview) -> int:
        """Have a stream send the block of `head`, when one is free; return its bytes.

        Raises `MigrationError`.
        """
        with self._taken:
            self._taken.wait_for(lambda: self._over or len(self._heads) < self._count)
            if not self._over:
                self._heads.append(head)
                self._unsent += 1
                self._dealt.notify()
        self.raise_failure()
        return block_bytes(head)

    def end_round(self, number: int) -> None:
        """Wait until all blocks, and hellos, have been sent; end the round on each stream.

        Raises `MigrationError`.
        """
        with self._taken:
            self._taken.wait_for(lambda: self._over or not self._unsent)
        self.raise_failure()
        data = RoundEnd(number).record().encode()
        for stream, link in sorted(self._links.items()):
            link.deadline = self._channel.deadline()
            try:
                link.send(data)
            except MigrationError as error:
                raise self._channel.stream_failure(stream, error) from error

    def raise_failure(self) -> None:
        """Raise the error of the first stream that has failed, if there is one."""
        if self._failure is not None:
            raise self._channel.stream_failure(*self._failure) from self._failure[1]
        if self._ended:
            raise MigrationError("the migration was aborted")

    def abort(self) -> None:
        """Break all connections, and end the migration's waits for them. Threads: any."""
        with self._taken:
            self._ended = True
            for link in self._links.values():
                link.abort()
            self._dealt.notify_all()
            self._taken.notify_all()

    def end(self) -> None:
        """End all streams; no memory is read afterwards. Later connections are closed."""
        self.abort()
        for thread in self._threads:
            thread.join()
        with self._taken:  # `abort` may be using them
            for link in self._links.values():
                link.close()

    @property
    def _over(self) -> bool:
        return self._ended or self._failure is not None

    # --- In the threads -------------------------------------------------------------------------
    def _run(self, number: int, token: bytes, checksum: str) -> None:
        """Connect, then send blocks until there are no more. Threads: stream sender."""
        try:
            link = self._connect()
            if not self._adopt(number, link):
                link.close()
                return
            self._send_blocks(StreamHello(token, number), link, checksum)
        except Exception as error:
            self._fail(number, error)

    def _adopt(self, number: int, link: Link) -> bool:
        """Keep `link`, whose thread this is; return False if all streams are to end."""
        with self._dealt:
            if not self._ended:
                self._links[number] = link
                self._threads.append(threading.current_thread())
            return not self._ended

    def _send_blocks(self, hello: StreamHello, link: Link, checksum: str) -> None:
        link.deadline = self._channel.deadline()
        link.send(hello.record().encode())
        self._sent()
        channel = link.pages(self._memory, Checksum(checksum))
        while (head := self._next_head()) is not None:
            link.deadline = self._channel.deadline()
            channel.send_blocks(head)
            self._sent()

    def _sent(self) -> None:
        with self._taken:
            self._unsent -= 1
            self._taken.notify()

    def _next_head(self) -> memoryview | None:
        with self._dealt:
            self._dealt.wait_for(lambda: self._over or bool(self._heads))
            if self._over:
                return None
            self._taken.notify()
            return self._heads.popleft()

    def _fail(self, number: int, error: Exception) -> None:
        with self._taken:
            if self._over:
                return
            self._failure = number, error
            self._dealt.notify_all()
            self._taken.notify_all()
            joining = self._joining
        if joining:  # the migration's thread waits for the destination
            self._channel.end_input()
