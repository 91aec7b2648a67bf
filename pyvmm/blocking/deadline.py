# SPDX-License-Identifier: Apache-2.0
"""Make a blocking call, but wait for it only until a deadline.

The caller waits for an event, which a signal handler can interrupt, so Ctrl-C works meanwhile. When
the deadline passes, the call continues in its daemon thread and its result is dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from pyvmm.blocking.thread_limit import thread_limit_reported

_T = TypeVar("_T")


def call_within(
    seconds: float,
    name: str,
    work: Callable[[], _T],
    discard: Callable[[_T], object] = lambda result: None,
) -> _T:
    """Return, or raise, the result of `work`, which a thread called `name` does.

    Raises TimeoutError after `seconds`; a result that comes later is passed to `discard`, in that
    thread. Raises `ThreadNotStarted`.
    """
    call = _Call(work, discard)
    with thread_limit_reported():
        threading.Thread(target=call.run, name=name, daemon=True).start()
    try:
        call.ended.wait(seconds)
    finally:
        call.abandon()
    return call.result()


class _Call(Generic[_T]):
    """One call; it either ends in time or is abandoned."""

    def __init__(self, work: Callable[[], _T], discard: Callable[[_T], object]) -> None:
        self._work = work
        self._discard = discard
        self._lock = threading.Lock()
        self._abandoned = False
        self._results: list[_T] = []
        self._error: BaseException | None = None
        self.ended = threading.Event()

    def run(self) -> None:
        try:
            self._end(self._work())
        except BaseException as error:
            self._error = error
        self.ended.set()

    def _end(self, result: _T) -> None:
        with self._lock:
            if not self._abandoned:
                self._results.append(result)
                return
        self._discard(result)

    def abandon(self) -> None:
        """Drop a result that comes from now on."""
        with self._lock:
            self._abandoned = True

    def result(self) -> _T:
        if self._results:
            return self._results[0]
        if self._error is not None:
            raise self._error
        raise TimeoutError
