# SPDX-License-Identifier: Apache-2.0
"""Loses no page, because it never clears the log and sends everything again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

MAX_ROUNDS = 10
"""Rounds while the guest runs; after them it is paused whatever is left."""
FEW_PAGES = 8
"""So few pages are left for the time when the guest is paused."""


class PageLog(Protocol):
    """The log of the pages that the guest has written, as KVM keeps it.

    A page that is in the log stays there until it is cleared, and is write protected again by that:
    the guest's next write puts it back into the log.
    """

    def collect(self) -> set[int]:
        """Return the pages in the log."""

    def clear(self, pfn: int) -> None:
        """Remove a page from the log and write protect it."""


class RunningGuest(Protocol):
    """The guest at the source, which runs until it is paused."""

    log: PageLog
    """Switched on before `migrate` is called."""
    pages: range
    """Its page frames."""

    def read(self, pfn: int) -> bytes:
        """Return the contents of a page."""

    def pause(self) -> None:
        """Stop all vCPUs."""


def migrate(guest: RunningGuest, send: Callable[[int, bytes], None]) -> None:
    """Send all memory of `guest` by `send`, which takes a page frame and its contents."""
    todo = set(guest.pages)
    for _ in range(MAX_ROUNDS):
        copy(guest, todo, send)
        todo = guest.log.collect()
        if len(todo) <= FEW_PAGES:
            break
    guest.pause()
    todo = guest.log.collect()
    copy(guest, todo, send)


def copy(guest: RunningGuest, todo: set[int], send: Callable[[int, bytes], None]) -> None:
    """Send the pages `todo`."""
    for pfn in sorted(todo):
        send(pfn, guest.read(pfn))
