# SPDX-License-Identifier: Apache-2.0
"""A connection to a control socket on the event loop: requests in flight, events as they come.

The server replies in order, so requests can be sent while others wait for their replies. Every wait
is bounded: a server that does not reply in time is as good as gone, and the connection is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyvmm.qmp import messages as qmp
from pyvmm.qmp.client import MAX_REPLY_BYTES, ConnectionClosedError, reported_error
from pyvmm.qmp.errors import NotQmpSocket, QmpServerUnresponsive
from pyvmm.qmp.json_stream import MAX_MESSAGE_BYTES, JsonStream
from pyvmm.qmp.messages import QmpError
from pyvmm.sockets.unix import connect_unix

REPLY_TIMEOUT_S = 10.0
_READ_BYTES = 1 << 16


class QmpLink:
    """A negotiated connection; made by `connect`. `on_event` is called with each event.

    Threads: event loop.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_event: Callable[[dict[str, Any]], object],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._on_event = on_event
        self._messages = JsonStream(MAX_REPLY_BYTES, max_tokens=MAX_MESSAGE_BYTES)
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._greeted = asyncio.get_running_loop().create_future()
        self._closed = False
        self._receiving = asyncio.create_task(self._receive())

    @classmethod
    async def connect(
        cls, path: Path, on_event: Callable[[dict[str, Any]], object] = lambda event: None
    ) -> QmpLink:
        """Connect to the control socket at `path`.

        Raises `ControlSocketUnreachable`, `NotQmpSocket` and `QmpServerUnresponsive`.
        """
        sock = connect_unix(path, REPLY_TIMEOUT_S)
        sock.setblocking(False)
        link = cls(*await asyncio.open_unix_connection(sock=sock), on_event)
        try:
            await asyncio.wait_for(asyncio.shield(link._greeted), REPLY_TIMEOUT_S)
            await link.execute("qmp_capabilities")
        except TimeoutError:
            await link.close()
            raise QmpServerUnresponsive(f"the control socket {path} is not answering") from None
        except (QmpError, ConnectionClosedError):
            await link.close()
            raise NotQmpSocket(f"{path} is not a QMP socket") from None
        return link

    async def execute(
        self, command: str, *, timeout_s: float = REPLY_TIMEOUT_S, **arguments: Any
    ) -> Any:
        """Run `command` and return its value; `timeout_s` bounds the wait for it.

        Raises `QmpError` if the command fails, and `ConnectionClosedError`.
        """
        if self._closed:
            raise ConnectionClosedError
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        reply = asyncio.get_running_loop().create_future()
        self._waiting.append(reply)
        self._writer.write(qmp.encode(request))
        try:
            return await asyncio.wait_for(asyncio.shield(reply), timeout_s)
        except TimeoutError:
            self._end()
            raise ConnectionClosedError from None

    async def close(self) -> None:
        """Close the connection."""
        self._end()
        self._receiving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._receiving

    async def _receive(self) -> None:
        try:
            while data := await self._reader.read(_READ_BYTES):
                self._messages.feed(data)
                while (message := self._messages.next()) is not None:
                    self._take(message)
        except (OSError, QmpError):
            pass
        finally:
            self._end()

    def _take(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self._on_event(message)
        elif not self._greeted.done():
            if "QMP" in message:
                self._greeted.set_result(None)
            else:
                self._greeted.set_exception(QmpError("no greeting"))
        elif self._waiting and not (reply := self._waiting.popleft()).done():
            if "return" in message:
                reply.set_result(message["return"])
            else:
                reply.set_exception(reported_error(message.get("error")))

    def _end(self) -> None:
        """Close the connection, and end every wait for it."""
        self._closed = True
        self._writer.close()
        for future in (self._greeted, *self._waiting):
            if not future.done():
                future.set_exception(ConnectionClosedError())
                future.exception()  # there may be no waiter
        self._waiting.clear()
