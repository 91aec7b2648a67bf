# SPDX-License-Identifier: Apache-2.0
"""The port through which an event loop is attached to a machine.

A machine is made and started without a loop: its vCPUs run, and notifications of its queues wait in
their eventfds. `Machine.attach` gives it the loop that serves them. asyncio's loops satisfy
`EventLoop` as they are; so does any small loop over `select.epoll`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Handle(Protocol):
    """A call that is scheduled."""

    def cancel(self) -> None:
        """Do not make the call; does nothing when it was made already."""


class EventLoop(Protocol):
    """What a machine needs of a loop; all but `call_soon_threadsafe` in the loop's own thread."""

    def add_reader(self, fd: int, callback: Callable[..., Any], *args: Any) -> object:
        """Call `callback(*args)` whenever `fd` can be read."""

    def remove_reader(self, fd: int) -> object:
        """Watch `fd` no longer."""

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> Handle:
        """Call `callback(*args)` once, in `delay` seconds."""

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any) -> object:
        """Call `callback(*args)` soon; from any thread. RuntimeError once the loop is closed."""
