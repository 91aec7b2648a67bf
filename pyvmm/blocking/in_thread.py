# SPDX-License-Identifier: Apache-2.0
"""Make blocking calls for a coroutine, in daemon threads.

`asyncio.to_thread` would make `asyncio.run`, and then the interpreter, wait for the end of the call
(`shutdown_default_executor`). Here the future may be cancelled or abandoned at any time: the thread
continues, its result is dropped, and it ends with the process at the latest. `call_in_thread` is
for a single call; a `Worker` makes its calls one after the other, so that a clean-up follows the
call that it cleans up after, even if that one hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from pyvmm.blocking.thread_limit import thread_limit_reported

_T = TypeVar("_T")


def call_in_thread(
    name: str, work: Callable[[], _T], discard: Callable[[_T], object] = lambda result: None
) -> asyncio.Future[_T]:
    """Start `work` in a thread called `name`; return the future of its result.

    A result that nothing waits for any more is passed to `discard`: in the event loop's thread, or
    in that of `work` once the loop is closed. Raises `ThreadNotStarted`.

    Threads: event loop.
    """
    worker = Worker(name)
    future = worker.call(work, discard)
    worker.end()
    return future


class Worker:
    """Makes calls one after the other, in a daemon thread called `name`.

    Raises `ThreadNotStarted`.

    Threads: event loop.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        with thread_limit_reported():
            threading.Thread(target=self._run, name=name, daemon=True).start()

    def call(
        self, work: Callable[[], _T], discard: Callable[[_T], object] = lambda result: None
    ) -> asyncio.Future[_T]:
        """Call `work` after the calls before it; as `call_in_thread` otherwise."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()

        def set_result(result: _T) -> None:
            if future.cancelled():
                discard(result)
            else:
                future.set_result(result)

        def set_exception(error: BaseException) -> None:
            if not future.cancelled():
                future.set_exception(error)

        def run() -> None:
            try:
                result = work()
            except BaseException as error:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(set_exception, error)
                return
            try:
                loop.call_soon_threadsafe(set_result, result)
            except RuntimeError:
                discard(result)

        self._calls.put(run)
        return future

    def end(self) -> None:
        """End the thread after the calls made so far."""
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
