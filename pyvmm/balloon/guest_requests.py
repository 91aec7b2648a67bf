# SPDX-License-Identifier: Apache-2.0
"""What all questions to a guest have in common: who can be asked, and the ways to get no answer.

A question is put to a queue of the balloon under the machine's lock, and answered by the device
model, also under the lock and on any thread; the answer is delivered on the event loop. The end of
the guest ends the question that is open.

Every way to have no answer is a `GuestRequestError` of its own:

    DriverUnavailable      no driver runs, or it has not accepted the queue's feature
    RequestUnsupported   the driver does not know this question
    GuestPaused      the vCPUs are stopped, or were when the time was over
    GuestReset       the driver was reset or restarted before it answered
    GuestEnded       the machine has ended, or ended meanwhile
    RequestTimeout         time is over
    InvalidResponse        the driver answered nonsense
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from devices.balloon.device import BalloonDevice
    from devices.balloon.dialects import Role

DEFAULT_TIMEOUT_S = 10.0

_T = TypeVar("_T")


class GuestRequestError(Exception):
    """There is no answer; the message says why."""


class DriverUnavailable(GuestRequestError):
    """No driver that could answer runs in the guest."""


class RequestUnsupported(GuestRequestError):
    """The driver knows other questions, not this one."""


class GuestPaused(GuestRequestError):
    """A guest that does not run cannot answer."""


class GuestReset(GuestRequestError):
    """The driver that was asked is gone."""


class GuestEnded(GuestRequestError):
    """The guest is gone."""


class RequestTimeout(GuestRequestError):
    """Time is over."""


class InvalidResponse(GuestRequestError):
    """The driver is wrong, or hostile."""


class GuestRequestChannel(Generic[_T]):
    """Puts questions, one at a time, to the queue of `role`; an answer is a `_T`.

    Made and called on a running event loop. Every use of `balloon` is under `lock`. `soon` calls a
    function on the loop later, with arguments; it may be called from any thread. `is_paused` says
    whether the guest's vCPUs are stopped. `nobody` is what to say when no driver serves the queue.
    """

    def __init__(
        self,
        balloon: BalloonDevice,
        role: Role,
        lock: threading.Lock,
        soon: Callable[..., None],
        is_paused: Callable[[], bool],
        nobody: str,
    ) -> None:
        self.lock = lock
        self.turn = asyncio.Lock()
        """Held by whoever asks."""
        self._balloon = balloon
        self._role = role
        self._soon = soon
        self._is_paused = is_paused
        self._nobody = nobody
        self._ended = False
        self._open: asyncio.Future[_T] | None = None

    def close(self) -> None:
        """The guest has ended: nothing is answered any more."""
        self._ended = True
        if self._open is not None and not self._open.done():
            self._open.set_exception(GuestEnded("the guest has ended"))

    def check(self) -> None:
        """Raise what stands in the way of any answer, if something does. Holds `lock`."""
        with self.lock:
            self._check()

    @contextmanager
    def asking(self, put: Callable[[Callable[[_T], None]], None]) -> Iterator[asyncio.Future[_T]]:
        """The answer to the question that `put` puts; `put` gets the callback for the device.

        Raises what stands in the way, found out under the same hold of `lock` as `put`.
        """
        answer: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._open = answer
        try:
            with self.lock:
                self._check()
                put(partial(self._soon, _deliver, answer))
            yield answer
        finally:
            self._open = None

    def _check(self) -> None:
        if self._ended:
            raise GuestEnded("the guest has ended")
        if self._is_paused():
            raise GuestPaused("the guest is paused and cannot answer")
        if not self._balloon.has_live(self._role):
            raise DriverUnavailable(self._nobody)


def _deliver(answered: asyncio.Future[_T], answer: _T) -> None:
    if not answered.done():
        answered.set_result(answer)
