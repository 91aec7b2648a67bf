# SPDX-License-Identifier: Apache-2.0
"""Make a blocking call for a coroutine, in a daemon thread of its own.

`asyncio.to_thread` would make `asyncio.run`, and then the interpreter, wait for the end of the call
(`shutdown_default_executor`). Here the future may be cancelled or abandoned at any time: the thread
continues, its result is dropped, and it ends with the process at the latest.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def call_in_thread(
    name: str, work: Callable[[], _T], discard: Callable[[_T], object] = lambda result: None
) -> asyncio.Future[_T]:
    """Start `work` in a thread called `name`; return the future of its result.

    A result that nothing waits for any more is passed to `discard`: in the event loop's thread, or
    in that of `work` once the loop is closed.

    Threads: event loop.
    """
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

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
