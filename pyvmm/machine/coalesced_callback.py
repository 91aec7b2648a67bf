# SPDX-License-Identifier: Apache-2.0
"""A call on the event loop, asked for from any thread and any number of times, that happens once.

A guest decides how often a device model has news: it can write a register a hundred thousand times
a second, from each of its processors. One callback on the event loop for each of them would be a
queue that only the guest's will bounds. What is of interest is that there is news, and the latest:

    changed = CoalescedCallback(announce, soon)
    changed()      # on a vCPU thread: `announce` runs soon on the loop ...
    changed()      # ... and not once more before it has begun
"""

from __future__ import annotations

from collections.abc import Callable


class CoalescedCallback:
    """Has `callback` run by `soon`, which calls a function on the event loop from any thread.

    Callers change first what `callback` will look at, and call then. The flag falls before the
    callback looks, so whatever it did not see has a call of its own.
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
