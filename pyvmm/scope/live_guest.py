# SPDX-License-Identifier: Apache-2.0
"""A guest that runs, as a source: its events, and questions about its state, over QMP.

Two connections lead to its control socket. On the first the guest is watched: it has the requests
that wait for events, and those of Step, which belong to the watch. Everything else goes over the
second, so that it does not wait for events. When the guest ends, its events remain.

Step stops the guest, and a page can pause it. It must not stay stopped because a browser was
closed, so Step is disarmed, and a guest that was stopped from here resumed, when no page has sent a
message for `PAGE_TIMEOUT_S` or the scope ends. A guest that another client has paused, before or
since, stays paused. The VMM alone knows that, so it is asked to resume the guest then; it does the
same if this process is killed.

Threads: event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyvmm.qmp.client import ConnectionClosedError
from pyvmm.qmp.messages import QmpError
from pyvmm.scope.errors import EventsUnsupported
from pyvmm.scope.history import ChunkHistory
from pyvmm.scope.qmp_link import REPLY_TIMEOUT_S, QmpLink
from pyvmm.scope.source import describe
from pyvmm.scope.watched_events import check_format, chunk_of, start_error

PAGE_TIMEOUT_S = 10.0
"""A page that has sent nothing for this time is gone: the guest runs."""
READ_WAIT_S = 0.25
"""A request of Step waits at most this long behind one for events."""
STATISTICS_PERIOD_S = 1.0
_STATES = {"STOP": "paused", "RESUME": "running"}
Tell = Callable[[dict[str, Any]], object]


class LiveGuest:
    """The guest whose control socket is at `path`; `name` is for people. Made by `start`.

    `pages` are called with messages for the page: see `live_socket`.
    """

    live = True

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self.name = name
        self.history = ChunkHistory()
        self.pages: set[Tell] = set()
        self.ended = asyncio.Event()
        self.stop_event: dict[str, Any] | None = None
        """The message about the event at which Step has stopped the guest; None if it runs."""
        self._seen = time.monotonic()
        self._stepping = False
        self._dropped = 0
        self._description: dict[str, Any] = {}

    async def start(self) -> None:
        """Begin to watch the guest.

        Raises `GuestNotWatched`, `EventsUnsupported`, and what `QmpLink.connect` raises.
        """
        self._watch = await QmpLink.connect(self._path, self._take_event)
        try:
            check_format(await self._watch.execute("x-trace-start"))
            self.query_link = await QmpLink.connect(self._path)
            await self._learn()
        except QmpError as error:
            await self._watch.close()
            raise start_error(error) from error
        except ConnectionClosedError as error:
            raise EventsUnsupported("the guest has ended") from error
        self._tasks = [
            asyncio.create_task(each) for each in (self._read(), self._measure(), self._guard())
        ]

    async def close(self) -> None:
        """End the watch; a guest that was stopped from here runs on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._watch.close()
        await self.query_link.close()

    def describe(self) -> dict[str, Any]:
        """Return the description of the source."""
        return self._description

    async def _learn(self) -> None:
        memory = await self.query("query-memory-size-summary")
        counters = await self.query("x-query-counters")
        devices: dict[str, list[str]] = {}
        for queue in counters["queues"]:
            devices.setdefault(queue["device"], []).append(queue["queue"])
        self._description = describe(
            live=True,
            name=self.name,
            ram_bytes=memory["base-memory"],
            devices=[{"name": name, "queues": queues} for name, queues in devices.items()],
            start_ns=0,
            notes=[],
        )

    async def query(self, command: str, **arguments: Any) -> Any:
        """Return the value of a command that does not belong to the watch.

        Raises `QmpError` and `ConnectionClosedError`.
        """
        return await self.query_link.execute(command, **arguments)

    # --- Requests of a page -----------------------------------------------------------------
    def page_is_alive(self) -> None:
        """Note that a page has sent a message."""
        self._seen = time.monotonic()

    async def step(self, arguments: dict[str, Any]) -> None:
        """Stop the guest at the next event that `arguments` choose. Raises `QmpError`."""
        self._stepping = True
        await self._watch.execute("x-trace-step", **arguments)

    async def disarm(self) -> None:
        """Stop the guest at no event. Raises `QmpError`."""
        await self._watch.execute("x-trace-step", kinds=[])

    async def resume(self) -> None:
        """Resume the guest. Raises `QmpError`."""
        await self.query("cont")

    async def pause(self) -> None:
        """Pause the guest if it runs, for as long as there is a page. Raises `QmpError`."""
        self._stepping = True
        await self._watch.execute("x-trace-step", kinds=[], pause=True)

    # --- Tasks ------------------------------------------------------------------------------
    async def _read(self) -> None:
        """Add the events to the history until the guest ends."""
        try:
            while True:
                reply = await self._watch.execute(
                    "x-trace-read", timeout=READ_WAIT_S, timeout_s=REPLY_TIMEOUT_S
                )
                if (chunk := chunk_of(reply)) is not None:
                    await self.history.add(chunk)
                if dropped := reply.get("dropped", 0):
                    self._dropped += dropped
                    self.tell({"type": "dropped", "events": self._dropped})
        except (ConnectionClosedError, QmpError, EventsUnsupported):
            self.ended.set()
            self.tell({"type": "end"})
            await self.history.end()

    async def _measure(self) -> None:
        """Tell the pages the sizes of the guest, while there are pages."""
        while not self.ended.is_set():
            if self.pages:
                with contextlib.suppress(ConnectionClosedError, QmpError):
                    self.tell({"type": "stats", **await self._statistics()})
            await asyncio.sleep(STATISTICS_PERIOD_S)

    async def _statistics(self) -> dict[str, Any]:
        status = await self.query("query-status")
        counters = await self.query("x-query-counters")
        balloon = await self.query("query-balloon")
        ram_bytes = self._description["memory"]
        return {
            "status": status["status"],
            "rss-bytes": counters["rss"],
            "balloon-actual": ram_bytes - balloon["actual"],
            "balloon-target": ram_bytes - balloon["target"],
        }

    async def _guard(self) -> None:
        """Let the guest run when all pages are gone."""
        while not self.ended.is_set():
            await asyncio.sleep(STATISTICS_PERIOD_S)
            if time.monotonic() - self._seen >= PAGE_TIMEOUT_S:
                await self._let_run()

    async def _let_run(self) -> None:
        """Disarm Step, and resume the guest if it was stopped from here."""
        stepping, self._stepping = self._stepping, False
        # A guest that has ended, or cannot run, is not resumed.
        with contextlib.suppress(ConnectionClosedError, QmpError):
            if stepping:
                await self._watch.execute("x-trace-step", kinds=[], resume=True)

    def _take_event(self, message: dict[str, Any]) -> None:
        """Tell the pages about an event of the control socket."""
        name = message["event"]
        if name in _STATES:
            if name == "RESUME":
                self.stop_event = None
            self.tell({"type": "status", "status": _STATES[name]})
        elif name == "X_TRACE_STEP":
            self.stop_event = {"type": "step", **message.get("data", {})}
            self.tell(self.stop_event)

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message to all pages."""
        for page in list(self.pages):
            page(message)
