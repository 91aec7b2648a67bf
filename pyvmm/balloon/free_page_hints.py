# SPDX-License-Identifier: Apache-2.0
"""Free page hints of the guest, with a time-out, on the event loop.

    async with machine.free_page_hints.held(timeout_s=10) as hints:
        ...  # a copy of memory that leaves out hints.pages

Hints are held: the guest's driver has taken the pages from its own kernel and keeps them until the
block ends, unless it runs short of memory. So nobody holds them longer than needed, and callers
take turns. A copy may leave out hinted pages if writes are logged since before the block began,
and must then still take every page the log names (`devices.balloon.hinting`).

A driver that is slow, or never ends, is stopped after the time-out; what it has hinted is as good
as the rest, so that is no error. Errors are those of `pyvmm.balloon.guest_requests`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from devices.balloon.device import BalloonDevice
from devices.balloon.dialects import Role
from devices.balloon.hinting import HintingResult
from pyvmm.balloon.guest_requests import (
    DEFAULT_TIMEOUT_S,
    GuestRequestChannel,
    GuestReset,
    RequestTimeout,
)
from pyvmm_native.runs import PageRuns

NOBODY = (
    "the guest runs no balloon driver that gives free page hints"
    " (standard dialect, --offer free-page-hint)"
)


class Hints(NamedTuple):
    """What the guest does not need for the time being."""

    pages: PageRuns
    complete: bool
    """The driver found no more; otherwise it was stopped."""


class FreePageHints:
    """Asks the driver of `balloon`; the arguments are those of `GuestRequestChannel`."""

    def __init__(
        self,
        balloon: BalloonDevice,
        lock: threading.Lock,
        soon: Callable[..., None],
        is_paused: Callable[[], bool],
    ) -> None:
        self._balloon = balloon
        self._channel: GuestRequestChannel[HintingResult] = GuestRequestChannel(
            balloon, Role.FREE_PAGE_HINT, lock, soon, is_paused, NOBODY
        )
        self.close = self._channel.close

    @asynccontextmanager
    async def held(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> AsyncIterator[Hints]:
        """Hints for the length of the block; the time-out ends it.

        Raises `GuestRequestError`.


        It includes the wait for another holder.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            async with asyncio.timeout_at(deadline):
                await self._channel.turn.acquire()
        except TimeoutError:
            raise RequestTimeout(
                f"the hints are held by somebody else since {timeout_s:g} s"
            ) from None
        try:
            self._channel.check()
            try:
                complete = await self._ask(deadline)
                with self._channel.lock:
                    pages = self._balloon.hinting.pages
                yield Hints(pages, complete)
            finally:
                self._complete_with()
        finally:
            self._channel.turn.release()

    async def _ask(self, deadline: float) -> bool:
        """Have one round of hinting; whether the driver came to its end."""
        hinting = self._balloon.hinting
        with self._channel.asking(hinting.start) as ended:
            try:
                async with asyncio.timeout_at(deadline):
                    ending = await ended
            except TimeoutError:
                self._channel.check()
                with self._channel.lock:
                    hinting.stop()
                return False
        if ending is HintingResult.RESET:
            raise GuestReset("the guest's balloon driver was reset while it gave hints")
        return ending is HintingResult.COMPLETE

    def _complete_with(self) -> None:
        """Let the guest use its pages again, if there still is a guest."""
        with self._channel.lock:
            if self._balloon.has_live(Role.FREE_PAGE_HINT):
                self._balloon.hinting.finish()
