# SPDX-License-Identifier: Apache-2.0
"""Run a coroutine on a new event loop, also when few descriptors are left.

A loop of asyncio that could not be created prints a traceback when Python deletes it, and the
coroutine that was meant for it prints a warning. So the descriptors are counted out before there is
either.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any, TypeVar

LOOP_DESCRIPTORS = 3
"""Those of a new loop: its epoll, and a pair of sockets that wakes it."""

_T = TypeVar("_T")


def run_on_new_loop(main: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Return, or raise, the result of `main`. OSError if there are not enough descriptors."""
    # Late: saves 8 ms (ssl) where `pyvmm.cli.asyncio_without_ssl` imports it before.
    import asyncio

    with ExitStack() as reserved:
        for _ in range(LOOP_DESCRIPTORS):
            reserved.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    return asyncio.run(main())
