# SPDX-License-Identifier: Apache-2.0
"""A callback on the event loop that runs once for any number of requests from any thread.

A guest determines how often a device model changes: it can write a register a hundred thousand
times a second on each vCPU. A callback for each write would make the queue of callbacks unbounded.
Only the latest state matters:

    changed = CoalescedCallback(announce, soon)
    changed()      # on a vCPU thread: `announce` runs soon on the loop ...
    changed()      # ... and is not scheduled again before it has begun
"""

from __future__ import annotations

from collections.abc import Callable


class CoalescedCallback:
    """Schedules `callback` through `soon`, which calls a function on the loop from any thread.

    Callers change the state that `callback` reads first. The flag is cleared before the
    callback reads, so a later change schedules another call.
    """

    def __init__(
        self, callback: Callable[[], None], soon: Callable[[Callable[[], None]], None]
    ) -> None:
        self._callback = callback
        self._soon = soon
        self._waiting = False

    def __call__(self) -> None:
        if not self._waiting:
            self._waiting = True
            self._soon(self._run)

    def _run(self) -> None:
        self._waiting = False
        self._callback()
