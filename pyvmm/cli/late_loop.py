# SPDX-License-Identifier: Apache-2.0
"""Calls for an event loop that does not run yet.

The guest's vCPUs run before asyncio is imported (`pyvmm.cli.vm_start`). What happens meanwhile on
another thread, a signal or output that is lost, is for the event loop: `LateLoop` keeps such calls,
in order, and hands them to the loop when it is attached.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


class LateLoop:
    """Stands for an event loop that is attached later.

    Threads: any; `attach` event loop.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: list[tuple[Callable[..., object], tuple[object, ...]]] = []

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make all calls so far, and later ones, soon on `loop`."""
        with self._lock:
            self._loop = loop
            for callback, args in self._calls:
                loop.call_soon(callback, *args)
            self._calls.clear()

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: object) -> None:
        """Call `callback(*args)` on the loop, once there is one. RuntimeError if it is closed."""
        with self._lock:
            if self._loop is None:
                self._calls.append((callback, args))
            else:
                self._loop.call_soon_threadsafe(callback, *args)
