# SPDX-License-Identifier: Apache-2.0
"""Calls from the migration's thread to the event loop, where the rest of the VM runs."""

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
