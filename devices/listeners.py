# SPDX-License-Identifier: Apache-2.0
"""Any number of callbacks for one event.

A device model exposes an event as an attribute, `bar_moved: Listeners[int] = Listeners()`, and
calls it when the event happens; callbacks are registered with `add`. No listener displaces another,
and without one a call does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, ParamSpec

_P = ParamSpec("_P")


class Listeners(Generic[_P]):
    """The listeners of one event, called in the order in which they were added."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[_P, object]] = []

    def add(self, callback: Callable[_P, object]) -> None:
        """Call `callback` with the event's arguments from now on, in the thread of the event."""
        self._callbacks.append(callback)

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> None:
        for callback in self._callbacks:
            callback(*args, **kwargs)
