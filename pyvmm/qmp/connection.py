# SPDX-License-Identifier: Apache-2.0
"""The connection of one client: bytes to requests, replies to bytes, in bounded time and memory.

A client's requests are served one after the other, in batches, between which others get their turn.
They are served only while it reads the replies: when unread replies exceed asyncio's high-water
mark, the server stops reading its requests until it has caught up. Events cannot wait, so a client
with more than `MAX_UNSENT_BYTES` unread when one is sent is disconnected.

Nothing is read while requests wait. So the end of a client's input is seen when all of its requests
are replied to: a client may close its sending side and still get its replies. One that has closed
the connection as a whole is noticed by its hang-up, which cancels the command that it waits for.

All clients together hold at most `MAX_TOTAL_INPUT_BYTES` of unfinished and waiting requests and
`MAX_TOTAL_UNSENT_BYTES` of output; beyond that, those with the most are disconnected.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import cast

from pyvmm.qmp import messages as qmp
from pyvmm.qmp.json_stream import JsonStream
from pyvmm.qmp.messages import QmpError
from pyvmm.qmp.session import QmpSession
from pyvmm.qmp.vm_control import VmControl
from pyvmm.sockets.hang_ups import HangUpWatcher

MAX_UNSENT_BYTES = 2 << 20
"""The largest reply, 1.4 MiB of `x-read-memory`, and events behind it."""
MAX_TOTAL_INPUT_BYTES = 4 << 20
MAX_TOTAL_UNSENT_BYTES = 8 << 20
BATCH_REQUESTS = 16
BATCH_BYTES = 1 << 16
"""A batch ends after this many requests, or with the request that exceeds this many bytes."""

_log = logging.getLogger(__name__)


class Connection(asyncio.Protocol):
    """A client of `vm`; it is one of `clients` while it is connected.

    Threads: event loop.
    """

    def __init__(self, vm: VmControl, clients: set[Connection], hang_ups: HangUpWatcher) -> None:
        self._clients = clients
        self._hang_ups = hang_ups
        self._loop = asyncio.get_running_loop()
        self._session = QmpSession(vm)
        self._stream = JsonStream()
        self._reads = True  # whether the client reads the replies
        self._waiting: asyncio.Task[None] | None = None  # a command that waits for the guest
        self._waiting_bytes = 0  # the size of its request
        self._next_batch: asyncio.Handle | None = None
        self._closed = self._loop.create_future()

    # --- Callbacks of the transport ---------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._fd: int = transport.get_extra_info("socket").fileno()
        self._clients.add(self)
        self._send(qmp.encode(qmp.greeting()))

    def connection_lost(self, exc: Exception | None) -> None:
        self._clients.discard(self)
        self._stop_serving()
        self._session.close()
        self._closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._stream.feed(data)
        _limit(self._clients, MAX_TOTAL_INPUT_BYTES, Connection.input_bytes, "unfinished requests")
        self._serve()

    def pause_writing(self) -> None:
        self._reads = False
        self._read_or_pause()

    def resume_writing(self) -> None:
        self._reads = True
        if self._waiting is None and self._next_batch is None:
            self._serve()

    # --- Requests ---------------------------------------------------------------------------------
    def _serve(self) -> None:
        """Serve a batch of the requests that have arrived, and arrange for the next one."""
        self._next_batch = None
        end_bytes = self._stream.buffered_bytes - BATCH_BYTES
        served = 0
        while self._reads and self._waiting is None and not self._transport.is_closing():
            if served == BATCH_REQUESTS or self._stream.buffered_bytes < end_bytes:
                self._next_batch = self._loop.call_soon(self._serve)
                break
            if not self._serve_next():
                break
            served += 1
        self._read_or_pause()

    def _serve_next(self) -> bool:
        """Serve the next request; return False if none has arrived completely."""
        before_bytes = self._stream.buffered_bytes
        try:
            message = self._stream.next()
        except QmpError as error:
            self._send(qmp.encode(qmp.failure(error)))
            return True
        if message is None:
            return False
        reply = self._session.reply(message)
        if isinstance(reply, bytes):
            self._send(reply)
        else:
            self._waiting_bytes = before_bytes - self._stream.buffered_bytes
            self._waiting = self._loop.create_task(self._reply_later(reply))
            self._hang_ups.watch(self._fd, self._transport.abort)
        return True

    async def _reply_later(self, reply: Awaitable[bytes]) -> None:
        line = await reply
        self._stop_waiting()
        self._send(line)
        self._serve()

    def _read_or_pause(self) -> None:
        if self._reads and self._waiting is None and self._next_batch is None:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting, self._waiting_bytes = None, 0
            self._hang_ups.unwatch(self._fd)

    def _stop_serving(self) -> None:
        if self._next_batch is not None:
            self._next_batch.cancel()
        if self._waiting is not None:
            # After its first step: Python warns of a coroutine that was never awaited.
            self._loop.call_soon(self._waiting.cancel)
            self._stop_waiting()

    # --- Output and bounds ------------------------------------------------------------------------
    def notify(self, line: bytes) -> None:
        """Send an event, or disconnect a client that has left too much unread."""
        if not self._session.negotiated or self._transport.is_closing():
            return
        if self.unsent_bytes() > MAX_UNSENT_BYTES:
            self.disconnect(f"it left {self.unsent_bytes()} bytes unread")
        else:
            self._send(line)

    def _send(self, line: bytes) -> None:
        self._transport.write(line)
        _limit(self._clients, MAX_TOTAL_UNSENT_BYTES, Connection.unsent_bytes, "unread output")

    def input_bytes(self) -> int:
        """Return the bytes of unfinished requests, and of the one that waits for the guest."""
        return self._stream.buffered_bytes + self._waiting_bytes

    def unsent_bytes(self) -> int:
        """Return the bytes of output that the client has not read."""
        return self._transport.get_write_buffer_size()

    def disconnect(self, reason: str) -> None:
        """Close the connection at once and drop its input and output."""
        _log.warning("control client disconnected: %s", reason)
        self._stop_serving()
        self._stream = JsonStream()
        self._transport.abort()

    def close(self) -> asyncio.Future[None]:
        """Close the connection once everything is sent; the future is done when it is closed."""
        self._stop_serving()
        self._transport.close()
        return self._closed

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()


def _limit(
    clients: set[Connection], limit_bytes: int, used: Callable[[Connection], int], what: str
) -> None:
    """Disconnect those clients that use the most until all use at most `limit_bytes`."""
    while (total_bytes := sum(map(used, clients))) > limit_bytes:
        largest = max(clients, key=used)
        largest.disconnect(
            f"{used(largest)} of the {total_bytes} bytes of {what} of all clients are its"
        )
