# SPDX-License-Identifier: Apache-2.0
"""Questions to the guest over the balloon's misc queue, with time-outs, on the event loop.

    unused = await machine.misc_requests.unused_pages(timeout_s=10)

The queue takes one question at a time (`devices.balloon.misc`), so callers take turns, first come
first served; a caller's time-out counts from its call and includes its wait for the turn. A
question that is not answered in time, or whose caller was cancelled, is withdrawn: what the guest
says to it later is counted by the device and ignored. Errors are those of
`pyvmm.balloon.guest_requests`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from devices.balloon.dialects import Role
from devices.balloon.misc import Command, MiscResponse, RequestStatus
from pyvmm.balloon.guest_requests import (
    DEFAULT_TIMEOUT_S,
    GuestRequestChannel,
    GuestReset,
    InvalidResponse,
    RequestTimeout,
    RequestUnsupported,
)

if TYPE_CHECKING:
    from devices.balloon.device import BalloonDevice
    from pyvmm_native.runs import PageRuns

NOBODY = "the guest runs no balloon driver that takes questions (bitmap dialect, MISC_VQ)"


class MiscRequests:
    """Asks the driver of `balloon`; the arguments are those of `GuestRequestChannel`."""

    def __init__(
        self,
        balloon: BalloonDevice,
        lock: threading.Lock,
        soon: Callable[..., None],
        is_paused: Callable[[], bool],
    ) -> None:
        self._misc = balloon.misc
        self._channel: GuestRequestChannel[MiscResponse] = GuestRequestChannel(
            balloon, Role.MISC, lock, soon, is_paused, NOBODY
        )
        self.close = self._channel.close

    async def unused_pages(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> PageRuns:
        """Pages that were unused when the guest looked, a moment ago; all of them are RAM.

        They may be in use again. A copy of memory that has logged writes since before this call
        may leave them out; nothing else may be concluded. Raises `GuestRequestError`.
        """
        return (await self._ask(Command.GET_UNUSED_PAGES, timeout_s)).pages

    async def drop_caches(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Drop the guest's clean page cache, dentries and inodes. Raises `GuestRequestError`."""
        await self._ask(Command.DROP_CACHE, timeout_s)

    async def sync_filesystems(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Have the guest write out its file systems. Raises `GuestRequestError`."""
        await self._ask(Command.SYNC, timeout_s)

    async def _ask(self, command: Command, timeout_s: float) -> MiscResponse:
        self._channel.check()
        try:
            async with asyncio.timeout(timeout_s), self._channel.turn:
                answer = await self._put(command)
        except TimeoutError:
            self._channel.check()
            raise RequestTimeout(f"the guest has not answered within {timeout_s:g} s") from None
        if answer.ending is RequestStatus.UNSUPPORTED:
            raise RequestUnsupported(f"the guest's balloon driver does not know {command.name}")
        if answer.ending is RequestStatus.INVALID_RESPONSE:
            raise InvalidResponse(f"the guest's balloon driver answered nonsense: {answer.why}")
        if answer.ending is RequestStatus.RESET:
            raise GuestReset("the guest's balloon driver was reset before it answered")
        return answer

    async def _put(self, command: Command) -> MiscResponse:
        """Put a question, now that it is its turn, and wait for what comes of it."""
        with self._channel.asking(lambda done: self._misc.ask(command, done)) as answer:
            try:
                return await answer
            finally:
                with self._channel.lock:
                    self._misc.withdraw()
