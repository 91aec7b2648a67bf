# SPDX-License-Identifier: Apache-2.0
"""Calls from a migration's thread to the event loop, which everything else of a machine runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def call_on_loop(loop: asyncio.AbstractEventLoop, function: Callable[[], _T]) -> _T:
    """Call `function` on `loop` and return, or raise, its result. Threads: migration."""

    async def call() -> _T:
        return function()

    return asyncio.run_coroutine_threadsafe(call(), loop).result()
