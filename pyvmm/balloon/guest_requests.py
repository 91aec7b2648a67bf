# SPDX-License-Identifier: Apache-2.0
"""Requests to the guest's balloon driver: one mechanism, one set of errors and time-outs.

A request is issued to a queue of the balloon under the device's lock. The device model completes
it, also under the lock and on any thread; the response is delivered on the event loop. A request
ends with its response or with one of these errors:

    GuestRequestError      the base of all
      DriverUnavailable    no driver runs, or it has not accepted the queue's feature
      RequestUnsupported   the driver does not know the request
      GuestPaused          the vCPUs are stopped, or were at the time-out
      GuestReset           the driver was reset before it responded
      GuestEnded           the guest has ended
      RequestTimeout       the driver has not responded in time
      InvalidResponse      the driver violated the protocol

A request that its caller cancels, or that times out, is cancelled in the device model as well.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from devices.balloon.device import BalloonDevice
    from devices.balloon.dialects import Role

DEFAULT_TIMEOUT_S = 10.0
"""Time-out of a request unless its caller gives another."""

_T = TypeVar("_T")
_Callback = Callable[[_T], None]


class GuestRequestError(Exception):
    """A request to the guest failed; the message says why."""


class DriverUnavailable(GuestRequestError):
    """No driver in the guest serves the queue."""


class RequestUnsupported(GuestRequestError):
    """The driver does not know the request."""


class GuestPaused(GuestRequestError):
    """The guest's vCPUs are stopped, so it cannot respond."""


class GuestReset(GuestRequestError):
    """The driver was reset before it responded."""


class GuestEnded(GuestRequestError):
    """The guest has ended."""


class RequestTimeout(GuestRequestError):
    """The driver has not responded in time."""


class InvalidResponse(GuestRequestError):
    """The driver's response violates the protocol: a bug, or a hostile guest."""


class GuestAccess:
    """Access to the driver of `balloon`, for all kinds of requests to one guest.

    Every use of `balloon` is under `lock`. `call_soon` takes a function and its arguments, and
    schedules the call on the event loop, from any thread. `is_paused` returns whether the vCPUs are
    stopped.
    """

    def __init__(
        self,
        balloon: BalloonDevice,
        lock: threading.Lock,
        call_soon: Callable[..., None],
        is_paused: Callable[[], bool],
    ) -> None:
        self.balloon = balloon
        self.lock = lock
        self.call_soon = call_soon
        self.is_paused = is_paused


class GuestRequestChannel(Generic[_T]):
    """Requests to the queue of `role`, each completed with a `_T`.

    `unavailable` is the message if no driver serves the queue.

    A request fails at once if the guest is paused or no driver serves the queue. With `deferrable`
    it waits instead, until its time-out: the guest may resume, or a driver start.

    Threads: event loop; no loop is needed before the first request.
    """

    def __init__(
        self, access: GuestAccess, role: Role, unavailable: str, *, deferrable: bool = False
    ) -> None:
        self.lock = access.lock
        """The device lock of the balloon."""
        self.turn = asyncio.Lock()
        """Held for the length of a request to a queue that takes one request at a time."""
        self._access = access
        self._role = role
        self._unavailable = unavailable
        self._deferrable = deferrable
        self._ended = False
        self._outstanding: set[asyncio.Future[_T]] = set()

    def close(self) -> None:
        """Fail all outstanding and later requests: the guest has ended."""
        self._ended = True
        for response in self._outstanding:
            if not response.done():
                response.set_exception(GuestEnded("the guest has ended"))

    def check(self) -> None:
        """Raise the error that a request would fail with now, if any. Takes `lock`."""
        with self.lock:
            self._check(self._deferrable)

    @asynccontextmanager
    async def time_limit(self, timeout_s: float) -> AsyncIterator[None]:
        """Limit a block with a request to `timeout_s`; raises `GuestRequestError` at its end."""
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except TimeoutError:
            with self.lock:
                self._check(deferrable=False)
            raise RequestTimeout(f"the guest has not responded within {timeout_s:g} s") from None

    @contextmanager
    def issue(
        self, send: Callable[[_Callback[_T]], None], cancel: Callable[[_Callback[_T]], object]
    ) -> Iterator[asyncio.Future[_T]]:
        """Issue a request with `send`, provide its response to a block, and then `cancel` it.

        Both get the callback of the device model and are called under `lock`; `send` in the same
        critical section that finds that the request is possible. Raises `GuestRequestError` if it
        is not.
        """
        response: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        callback = partial(self._access.call_soon, _deliver, response)
        self._outstanding.add(response)
        try:
            with self.lock:
                self._check(self._deferrable)
                send(callback)
            try:
                yield response
            finally:
                with self.lock:
                    cancel(callback)
        finally:
            self._outstanding.discard(response)

    def _check(self, deferrable: bool) -> None:
        if self._ended:
            raise GuestEnded("the guest has ended")
        if self._access.is_paused() and not deferrable:
            raise GuestPaused("the guest is paused and cannot respond")
        balloon = self._access.balloon
        if not balloon.has_live(self._role) and (balloon.running or not deferrable):
            raise DriverUnavailable(self._unavailable)


def _deliver(response: asyncio.Future[_T], value: _T) -> None:
    if not response.done():
        response.set_result(value)
