# SPDX-License-Identifier: Apache-2.0
"""The WebSocket of a page of a live guest.

To the page: each binary message is a chunk of events; text messages are JSON objects with a `type`:
`status`, `armed`, `step` (the guest has stopped at an event), `stats`, `dropped` and `end`. From
the page: `step` with `kinds` and maybe `device` and `queue`, `disarm`, `resume`, `pause` and
`alive`.

A page that does not take its chunks falls behind the history and is disconnected, as is one that
sends too much, or anything else.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from typing import Any

from tornado.web import HTTPError
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from pyvmm.qmp.client import ConnectionClosedError
from pyvmm.qmp.messages import QmpError
from pyvmm.scope.guard import GuardedHandler
from pyvmm.scope.history import TooSlow
from pyvmm.scope.live_guest import LiveGuest

MAX_MESSAGES_PER_S = 20
MAX_WAITING = 64
"""Text messages that wait for a page."""
_POLICY, _NORMAL = 1008, 1000
_STEP_ARGUMENTS = ("kinds", "device", "queue")


class LiveSocket(GuardedHandler, WebSocketHandler):
    """One page; `api/live`."""

    guest: LiveGuest
    _sending: list[asyncio.Task[None]]

    def prepare(self) -> None:
        """Refuse the request for a recording, or without `Origin`."""
        super().prepare()
        if not isinstance(self.site.source, LiveGuest):
            raise HTTPError(409, reason="A recording is not live")
        if "Origin" not in self.request.headers:
            raise HTTPError(403, reason="The request comes from another site")
        self.guest = self.site.source

    def check_origin(self, origin: str) -> bool:
        """Accept this server's own page only."""
        return self.is_own(origin)

    def open(self, *args: str, **kwargs: str) -> None:
        """Begin to send."""
        self._recent: deque[float] = deque(maxlen=MAX_MESSAGES_PER_S)
        self._texts: asyncio.Queue[dict[str, Any]] = asyncio.Queue(MAX_WAITING)
        self.guest.page_is_alive()
        self.guest.pages.add(self._tell)
        if self.guest.stop_event is not None:  # another page has stopped it, or this one before
            self._tell(self.guest.stop_event)
        self._sending = [
            asyncio.create_task(each) for each in (self._send_chunks(), self._send_texts())
        ]

    def on_close(self) -> None:
        """Stop sending."""
        self.guest.pages.discard(self._tell)
        for task in self._sending:
            task.cancel()

    async def on_message(self, message: str | bytes) -> None:
        """Do what the page asks for."""
        now = time.monotonic()
        if len(self._recent) == MAX_MESSAGES_PER_S and now - self._recent[0] < 1.0:
            return self.close(_POLICY, "too many messages")
        self._recent.append(now)
        try:
            request = json.loads(message)
            kind = request["type"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return self.close(_POLICY, "not a message of the page")
        self.guest.page_is_alive()
        try:
            await self._do(kind, request)
        except QmpError as error:
            self._tell({"type": "status", "error": error.desc})
        except ConnectionClosedError:
            self._tell({"type": "end"})
        return None

    async def _do(self, kind: Any, request: dict[str, Any]) -> None:
        match kind:
            case "alive":
                pass
            case "step":
                chosen = {name: request[name] for name in _STEP_ARGUMENTS if request.get(name)}
                await self.guest.step(chosen)
                self._tell({"type": "armed"})
            case "disarm":
                await self.guest.disarm()
            case "resume":
                await self.guest.resume()
            case "pause":
                await self.guest.pause()
            case _:
                self.close(_POLICY, "not a message of the page")

    def _tell(self, message: dict[str, Any]) -> None:
        try:
            self._texts.put_nowait(message)
        except asyncio.QueueFull:
            self.close(_POLICY, "the page is too slow")

    async def _send_chunks(self) -> None:
        """Send chunk after chunk, each when the one before has been taken."""
        history = self.guest.history
        number = history.first
        try:
            while (chunk := await history.get(number)) is not None:
                await self.write_message(chunk, binary=True)
                number += 1
            self.close(_NORMAL, "the guest has ended")
        except TooSlow:
            self.close(_POLICY, "the page is too slow for the events")
        except WebSocketClosedError:
            pass

    async def _send_texts(self) -> None:
        try:
            while True:
                await self.write_message(json.dumps(await self._texts.get()))
        except WebSocketClosedError:
            pass
