# SPDX-License-Identifier: Apache-2.0
"""Questions to the guest over the balloon's misc queue, with time-outs, on the event loop.

    unused = await machine.balloon_questions.unused_pages(timeout_s=10)

The queue takes one question at a time (`devices.balloon.misc`), so callers take turns, first come
first served; a caller's time-out counts from its call and includes its wait for the turn. A
question that is not answered in time, or whose caller was cancelled, is withdrawn: what the guest
says to it later is counted by the device and ignored.

Every way to have no answer is a `QuestionError` of its own:

    NoMiscQueue      no driver runs, or it has not accepted MISC_VQ
    UnknownToGuest   the driver does not know this question
    GuestPaused      the vCPUs are stopped, or were when the time was over
    GuestReset       the driver was reset or restarted before it answered
    GuestEnded       the machine has ended, or ended meanwhile
    NoAnswer         time is over
    BadAnswer        the driver answered nonsense
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from devices.balloon.dialects import Role
from devices.balloon.misc import Answer, Command, Ending

if TYPE_CHECKING:
    from devices.balloon.device import BalloonDevice
    from pyvmm_native.runs import PageRuns

DEFAULT_TIMEOUT_S = 10.0


class QuestionError(Exception):
    """There is no answer; the message says why."""


class NoMiscQueue(QuestionError):
    """There is nobody to ask."""


class UnknownToGuest(QuestionError):
    """The driver knows other questions, not this one."""


class GuestPaused(QuestionError):
    """A guest that does not run cannot answer."""


class GuestReset(QuestionError):
    """The driver that was asked is gone."""


class GuestEnded(QuestionError):
    """The guest is gone."""


class NoAnswer(QuestionError):
    """Time is over."""


class BadAnswer(QuestionError):
    """The driver is wrong, or hostile."""


class BalloonQuestions:
    """Asks the driver of `balloon`, whose every use is under `lock`.

    Made and called on a running event loop. `soon` calls a function on it later, with arguments; it
    may be called from any thread. `is_paused` says whether the guest's vCPUs are stopped.
    """

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
        self._open: asyncio.Future[Answer] | None = None

    def close(self) -> None:
        """The guest has ended: nothing is answered any more."""
        self._ended = True
        if self._open is not None and not self._open.done():
            self._open.set_exception(GuestEnded("the guest has ended"))

    async def unused_pages(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> PageRuns:
        """Pages that were unused when the guest looked, a moment ago; all of them are RAM.

        They may be in use again. A copy of memory that has logged writes since before this call
        may leave them out; nothing else may be concluded. Raises `QuestionError`.
        """
        return (await self._ask(Command.GET_UNUSED_PAGES, timeout_s)).pages

    async def drop_caches(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Have the guest drop its clean page cache, dentries and inodes. Raises `QuestionError`."""
        await self._ask(Command.DROP_CACHE, timeout_s)

    async def sync_filesystems(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Have the guest write out its file systems. Raises `QuestionError`."""
        await self._ask(Command.SYNC, timeout_s)

    async def _ask(self, command: Command, timeout_s: float) -> Answer:
        self._check()
        try:
            async with asyncio.timeout(timeout_s), self._turn:
                answer = await self._put(command)
        except TimeoutError:
            self._check()
            raise NoAnswer(f"the guest has not answered within {timeout_s:g} s") from None
        if answer.ending is Ending.UNSUPPORTED:
            raise UnknownToGuest(f"the guest's balloon driver does not know {command.name}")
        if answer.ending is Ending.BAD_ANSWER:
            raise BadAnswer(f"the guest's balloon driver answered nonsense: {answer.why}")
        if answer.ending is Ending.RESET:
            raise GuestReset("the guest's balloon driver was reset before it answered")
        return answer

    async def _put(self, command: Command) -> Answer:
        """Put a question, now that it is its turn, and wait for what comes of it."""
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._open = answered
        try:
            with self._lock:
                self._check_locked()
                self._balloon.misc.ask(command, partial(self._soon, _deliver, answered))
            return await answered
        finally:
            self._open = None
            with self._lock:
                self._balloon.misc.withdraw()

    def _check(self) -> None:
        with self._lock:
            self._check_locked()

    def _check_locked(self) -> None:
        """Raise what stands in the way of any answer, if something does."""
        if self._ended:
            raise GuestEnded("the guest has ended")
        if self._is_paused():
            raise GuestPaused("the guest is paused and cannot answer")
        if not self._balloon.has_live(Role.MISC):
            raise NoMiscQueue(
                "the guest runs no balloon driver that takes questions (bitmap dialect, MISC_VQ)"
            )


def _deliver(answered: asyncio.Future[Answer], answer: Answer) -> None:
    if not answered.done():
        answered.set_result(answer)
