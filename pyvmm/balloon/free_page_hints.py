# SPDX-License-Identifier: Apache-2.0
"""Free page hints of the guest (VIRTIO 1.2, section 5.5.6.5), requested with a time-out.

    async with vm.free_page_hints.held(timeout_s=10) as hints:
        ...  # a copy of memory that leaves out hints.pages

Hints are held: the guest's driver has allocated the pages from its own kernel and keeps them until
the block ends, unless it runs short of memory. So blocks should be short, and callers take turns. A
copy may leave out hinted pages if writes are logged since before the block began, and must then
still take every page the log names (`devices.balloon.hinting`).

A round that is slow, or never ends, is stopped at the time-out; the hints given so far are valid,
so that is not an error. Errors are those of `pyvmm.balloon.guest_requests`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from devices.balloon.dialects import Role
from devices.balloon.hinting import HintingResult
from pyvmm.balloon.guest_requests import (
    DEFAULT_TIMEOUT_S,
    GuestAccess,
    GuestRequestChannel,
    GuestReset,
    RequestTimeout,
)
from pyvmm_native.runs import PageRuns

UNAVAILABLE = "the guest runs no balloon driver with FREE_PAGE_HINT (standard dialect)"
"""Message of `DriverUnavailable` for these requests."""


class Hints(NamedTuple):
    """Pages that the guest does not need for now."""

    pages: PageRuns
    complete: bool
    """The driver has hinted all its free pages; otherwise the round was stopped."""


class FreePageHints:
    """Free page hints of one guest.

    Threads: event loop.
    """

    def __init__(self, access: GuestAccess) -> None:
        self._balloon = access.balloon
        self._channel: GuestRequestChannel[HintingResult] = GuestRequestChannel(
            access, Role.FREE_PAGE_HINT, UNAVAILABLE
        )
        self.close = self._channel.close
        """As `GuestRequestChannel.close`."""
        self.last_unused = PageRuns()
        """The pages that the last answer has named."""

    @asynccontextmanager
    async def held(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> AsyncIterator[Hints]:
        """Provide hints for the length of the block.

        The time-out includes the wait for the caller's turn. Raises `GuestRequestError`.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            async with asyncio.timeout_at(deadline):
                await self._channel.turn.acquire()
        except TimeoutError:
            raise RequestTimeout(
                f"the free page hints have been in use by another request for {timeout_s:g} s"
            ) from None
        try:
            self._channel.check()
            try:
                complete = await self._request(deadline)
                with self._channel.lock:
                    self.last_unused = pages = self._balloon.hinting.pages
                yield Hints(pages, complete)
            finally:
                self._release()
        finally:
            self._channel.turn.release()

    async def _request(self, deadline: float) -> bool:
        """Run one round of hinting; return whether the driver completed it."""
        hinting = self._balloon.hinting
        with self._channel.issue(hinting.start, lambda _: hinting.stop()) as response:
            try:
                async with asyncio.timeout_at(deadline):
                    result = await response
            except TimeoutError:
                self._channel.check()
                return False
        if result is HintingResult.RESET:
            raise GuestReset("the guest's balloon driver was reset while it gave hints")
        return result is HintingResult.COMPLETE

    def _release(self) -> None:
        """Let the driver reuse its pages, if it still runs."""
        with self._channel.lock:
            if self._balloon.has_live(Role.FREE_PAGE_HINT):
                self._balloon.hinting.finish()
