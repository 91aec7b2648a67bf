# SPDX-License-Identifier: Apache-2.0
"""The last chunks of a live guest, so that a page that is opened or loaded again shows them, too.

Each page has a place in the history and is sent chunk after chunk at the pace at which it takes
them, so a slow page costs nothing but its place. One that is still at a chunk that has been
forgotten is too slow.
"""

from __future__ import annotations

import asyncio
from collections import deque

MAX_HISTORY_BYTES = 32 << 20


class TooSlow(Exception):
    """The next chunk of a page has been forgotten."""


class ChunkHistory:
    """The chunks of one guest, the oldest forgotten beyond `max_bytes`.

    Threads: event loop.
    """

    def __init__(self, max_bytes: int = MAX_HISTORY_BYTES) -> None:
        self._max_bytes = max_bytes
        self._chunks: deque[bytes] = deque()
        self._bytes = 0
        self._ended = False
        self._changed = asyncio.Condition()
        self.first = 0
        """The number of the oldest chunk that is kept, counted from the first of all."""

    async def add(self, chunk: bytes) -> None:
        """Append a chunk."""
        self._chunks.append(chunk)
        self._bytes += len(chunk)
        while self._bytes > self._max_bytes:
            self._bytes -= len(self._chunks.popleft())
            self.first += 1
        async with self._changed:
            self._changed.notify_all()

    async def end(self) -> None:
        """Note that no chunk follows."""
        self._ended = True
        async with self._changed:
            self._changed.notify_all()

    async def get(self, number: int) -> bytes | None:
        """Wait for chunk `number` and return it; None if the guest ends before. TooSlow."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._ended or number < self.first + len(self._chunks)
            )
        if number < self.first:
            raise TooSlow
        at = number - self.first
        return self._chunks[at] if at < len(self._chunks) else None
