# SPDX-License-Identifier: Apache-2.0
"""The events of a machine as they happen, for one client at a time.

The watch begins with `start` and ends with `stop`, both by the same client. Between them the event
taker queues chunks of the recording format, and `read` returns them one after the other. The queue
is bounded: a client that is too slow loses events, and is told how many. Neither the guest nor the
event loop ever waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from devices.listeners import Listeners
from pyvmm.errors import ThreadNotStarted
from pyvmm.trace.errors import WatchRefused
from pyvmm.trace.tracer import EventTracer

if TYPE_CHECKING:
    from devices.ports import Tracer
    from pyvmm_native.events import Batch

PERIOD_S = 0.05
"""Longest time for which an event waits to be queued."""
MAX_WAITING_BYTES = 8 << 20
"""Chunks that wait for the client."""


class ReadEvents(NamedTuple):
    """The result of one read."""

    chunk: bytes | None
    """The next chunk; None if there are no events."""
    events: int
    """Number of events in the chunk."""
    dropped: int
    """Events that were lost since the last read, as the client was too slow."""


class ChunkQueue:
    """The chunks that wait for a client; satisfies `EventSink`.

    `on_chunk` is called when the queue is no longer empty.

    Threads: event taker for `put` and `end`; event loop for `get`.
    """

    period_s = PERIOD_S

    def __init__(self, on_chunk: Callable[[], None]) -> None:
        self._on_chunk = on_chunk
        self._lock = threading.Lock()
        self._chunks: deque[tuple[bytes, int]] = deque()
        self._bytes = 0
        self._dropped = 0

    def put(self, chunk: bytes, batch: Batch) -> None:
        """As `EventSink.put`."""
        with self._lock:
            if self._bytes + len(chunk) > MAX_WAITING_BYTES:
                self._dropped += batch.event_count
                return
            self._bytes += len(chunk)
            self._chunks.append((chunk, batch.event_count))
        self._on_chunk()

    def end(self) -> None:
        """As `EventSink.end`."""

    def get(self) -> ReadEvents:
        """Return the next chunk, if there is one."""
        with self._lock:
            dropped, self._dropped = self._dropped, 0
            if not self._chunks:
                return ReadEvents(None, 0, dropped)
            chunk, events = self._chunks.popleft()
            self._bytes -= len(chunk)
            return ReadEvents(chunk, events, dropped)


class EventWatch:
    """Lets one client at a time read the events of `tracer`.

    A client is any object; `ended` is called when its watch ends.

    Threads: event loop.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._client: object = None
        self._queue = ChunkQueue(lambda: None)
        self._arrived = asyncio.Event()
        self.ended: Listeners[[]] = Listeners()
        self.reading = False
        """True while the client waits for events."""
        self.last_read = 0.0
        """Time of the event loop at which the last read ended, or the watch began."""

    @property
    def active(self) -> bool:
        """True while a client watches."""
        return self._client is not None

    def start(self, client: object) -> None:
        """Begin the watch of `client`.

        Raises `WatchRefused` if another client watches, or no events can be kept.
        """
        if self._client is not None:
            raise WatchRefused("The events are already watched")
        if not isinstance(self._tracer, EventTracer):
            raise WatchRefused("The events of this guest cannot be watched")
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()

        def on_chunk() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(arrived.set)

        queue = ChunkQueue(on_chunk)
        try:
            self._tracer.taker.add(queue)
        except (MemoryError, OSError, ThreadNotStarted) as error:
            raise WatchRefused(f"The events cannot be watched: {error}") from error
        self._queue, self._arrived, self._client = queue, arrived, client
        self.last_read = loop.time()

    async def read(self, client: object, timeout_s: float) -> ReadEvents:
        """Wait at most `timeout_s` for events, and return the next chunk.

        Raises `WatchRefused`.
        """
        self.check(client)
        queue, arrived = self._queue, self._arrived
        arrived.clear()
        found = queue.get()
        if found.chunk is None and timeout_s:
            self.reading = True
            try:
                async with asyncio.timeout(timeout_s):
                    await arrived.wait()
            except TimeoutError:
                pass
            finally:
                self.reading = False
            more = queue.get()
            found = more._replace(dropped=found.dropped + more.dropped)
        self.last_read = asyncio.get_running_loop().time()
        return found

    def stop(self, client: object) -> None:
        """End the watch of `client`; raises `WatchRefused`."""
        self.check(client)
        assert isinstance(self._tracer, EventTracer)
        self._tracer.taker.remove(self._queue)
        self._client = None
        self.ended()

    def leave(self, client: object) -> None:
        """End the watch of `client`, if there is one: the client has disconnected."""
        if self._client is client:
            self.stop(client)

    def check(self, client: object) -> None:
        """Raise `WatchRefused` unless `client` watches the events."""
        if self._client is None or self._client is not client:
            raise WatchRefused("The events are not watched by this client")
