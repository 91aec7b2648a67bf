# SPDX-License-Identifier: Apache-2.0
"""The port through which an event loop is attached to a machine.

A machine is constructed and started without a loop: its vCPUs run, and notifications of its queues
stay pending in their eventfds. `Machine.attach` sets the loop that serves them. asyncio's loops
satisfy `EventLoop`, and so can a small loop over `select.epoll`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Handle(Protocol):
    """A scheduled call."""

    def cancel(self) -> None:
        """Cancel the call; does nothing if it has been made."""


class EventLoop(Protocol):
    """The methods that a machine uses; all but `call_soon_threadsafe` on the loop's thread."""

    def add_reader(self, fd: int, callback: Callable[..., Any], *args: Any) -> object:
        """Call `callback(*args)` whenever `fd` is readable."""

    def remove_reader(self, fd: int) -> object:
        """Stop watching `fd`."""

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> Handle:
        """Call `callback(*args)` once after `delay` seconds."""

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any) -> object:
        """Call `callback(*args)` soon; from any thread. RuntimeError once the loop is closed."""
