# SPDX-License-Identifier: Apache-2.0
"""Calls from the migration's thread to the event loop, where the rest of the VM runs.

A call is a plain callback of the loop and not a coroutine: several of them are made while the guest
is paused, and a coroutine costs a task and one more turn of the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_T = TypeVar("_T")


def call_on_loop(loop: asyncio.AbstractEventLoop, function: Callable[[], _T]) -> _T:
    """Call `function` on `loop` and return, or raise, its result. Threads: migration."""
    result: Future[_T] = Future()

    def call() -> None:
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)
            if not isinstance(error, Exception):
                raise

    loop.call_soon_threadsafe(call)
    return result.result()
