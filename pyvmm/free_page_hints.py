# SPDX-License-Identifier: Apache-2.0
"""Free page hints of the guest, with a time-out, on the event loop.

    async with machine.free_page_hints.held(timeout_s=10) as hints:
        ...  # a copy of memory that leaves out hints.pages

Hints are held: the guest's driver has taken the pages from its own kernel and keeps them until the
block ends, unless it runs short of memory. So nobody holds them longer than needed, and callers
take turns. A copy may leave out hinted pages if writes are logged since before the block began,
and must then still take every page the log names (`devices.balloon.hinting`).

A driver that is slow, or never ends, is stopped after the time-out; what it has hinted is as good
as the rest, so that is no error. Errors are `QuestionError`s, as for any question to the guest.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from devices.balloon.device import BalloonDevice
from devices.balloon.dialects import Role
from devices.balloon.hinting import Ending
from pyvmm.balloon_questions import (
    DEFAULT_TIMEOUT_S,
    GuestEnded,
    GuestPaused,
    GuestReset,
    NoAnswer,
    QuestionError,
)
from pyvmm_native.runs import PageRuns


class NoHints(QuestionError):
    """No driver runs, or it has not accepted FREE_PAGE_HINT."""


@dataclass(frozen=True)
class Hints:
    """What the guest does not need for the time being."""

    pages: PageRuns
    complete: bool
    """The driver found no more; otherwise it was stopped."""


class FreePageHints:
    """Asks the driver of `balloon`, whose device lock is `lock`."""

    def __init__(
        self,
        balloon: BalloonDevice,
        lock: threading.Lock,
        soon: Callable[..., None],
        is_paused: Callable[[], bool],
    ) -> None:
        self._balloon = balloon
        self._lock = lock
        self._soon = soon
        self._is_paused = is_paused
        self._ended = False
        self._turn = asyncio.Lock()
        self._open: asyncio.Future[Ending] | None = None

    def close(self) -> None:
        """The guest has ended: nothing is hinted any more."""
        self._ended = True
        if self._open is not None and not self._open.done():
            self._open.set_exception(GuestEnded("the guest has ended"))

    @asynccontextmanager
    async def held(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> AsyncIterator[Hints]:
        """Hints for the length of the block; the time-out ends the asking. Raises `QuestionError`.

        It includes the wait for another holder.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            async with asyncio.timeout_at(deadline):
                await self._turn.acquire()
        except TimeoutError:
            raise NoAnswer(f"the hints are held by somebody else since {timeout_s:g} s") from None
        try:
            self._check()
            try:
                complete = await self._ask(deadline)
                with self._lock:
                    pages = self._balloon.hinting.pages
                yield Hints(pages, complete)
            finally:
                self._give_back()
        finally:
            self._turn.release()

    async def _ask(self, deadline: float) -> bool:
        """Have one round of hinting; whether the driver came to its end."""
        ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._open = ended
        try:
            with self._lock:
                self._balloon.hinting.start(partial(self._soon, _deliver, ended))
            async with asyncio.timeout_at(deadline):
                ending = await ended
        except TimeoutError:
            self._check()
            with self._lock:
                self._balloon.hinting.stop()
            return False
        finally:
            self._open = None
        if ending is Ending.RESET:
            raise GuestReset("the guest's balloon driver was reset while it gave hints")
        return ending is Ending.COMPLETE

    def _give_back(self) -> None:
        """Let the guest use its pages again, if there still is a guest."""
        with self._lock:
            if self._balloon.has_live(Role.FREE_PAGE_HINT):
                self._balloon.hinting.finish()

    def _check(self) -> None:
        """Raise what stands in the way of hints, if something does."""
        if self._ended:
            raise GuestEnded("the guest has ended")
        if self._is_paused():
            raise GuestPaused("the guest is paused and cannot answer")
        with self._lock:
            if not self._balloon.has_live(Role.FREE_PAGE_HINT):
                raise NoHints(
                    "the guest runs no balloon driver that gives free page hints"
                    " (standard dialect, --offer free-page-hint)"
                )


def _deliver(ended: asyncio.Future[Ending], ending: Ending) -> None:
    if not ended.done():
        ended.set_result(ending)
