# SPDX-License-Identifier: Apache-2.0
"""Check of chapter 12: the destination has the source's memory, and the loop converges.

The check plays a guest that writes to the page that is being copied, and others, between any two
steps of the loop.
"""

from __future__ import annotations

from typing import Any

from pyvmm.learn.checking import expect

PAGES = range(64)
MAX_SENT = 3 * len(PAGES)
"""Pages that a loop may send for a guest that writes to few; a correct one sends below 100."""


class _Log:
    """A dirty log, as `exercise.PageLog` describes it."""

    def __init__(self, guest: _Guest) -> None:
        self.guest = guest
        self.dirty: set[int] = set()

    def collect(self) -> set[int]:
        """Return the pages in the log; the guest writes right afterwards."""
        found = set(self.dirty)
        self.guest.write_if_due("collect", 5)
        return found

    def clear(self, pfn: int) -> None:
        """Remove a page from the log; the guest writes right before and afterwards."""
        self.guest.write_if_due("before clear", pfn)
        self.dirty.discard(pfn)
        self.guest.write_if_due("after clear", pfn)


class _Guest:
    """A guest that writes to a page at each moment of `moments`, once for each number in it."""

    def __init__(self, moments: dict[str, int]) -> None:
        self.memory = dict.fromkeys(PAGES, b"first contents")
        self.pages = PAGES
        self.log = _Log(self)
        self.moments = dict(moments)
        self.running = True
        self.writes = 0
        self.copies: dict[int, bytes] = {}
        self.sent = 0

    def read(self, pfn: int) -> bytes:
        """Return the contents of a page; the guest writes to it right afterwards."""
        contents = self.memory[pfn]
        self.write_if_due("read", pfn)
        return contents

    def pause(self) -> None:
        """Stop the guest, after a last write."""
        self.write_if_due("pause", 9)
        self.running = False

    def send(self, pfn: int, contents: bytes) -> None:
        """Take a page at the destination; the guest writes to it at the source meanwhile."""
        self.copies[pfn] = contents
        self.sent += 1
        self.write_if_due("send", pfn)

    def write_if_due(self, moment: str, pfn: int) -> None:
        """Write to `pfn` if the guest still runs and has writes left for `moment`."""
        if not self.running or not self.moments.get(moment, 0):
            return
        self.moments[moment] -= 1
        self.writes += 1
        self.memory[pfn] = b"contents after write %d" % self.writes
        self.log.dirty.add(pfn)


def check(exercise: Any) -> None:
    """Check `migrate` of the module `exercise`."""
    _check_copy(exercise, {}, "never")
    for moment, words in (
        ("read", "right after the page was read"),
        ("send", "while the page was being sent"),
        ("before clear", "right before the page was cleared in the log"),
        ("after clear", "right after the page was cleared in the log"),
        ("collect", "right after the log was read"),
        ("pause", "right before it was paused"),
    ):
        _check_copy(exercise, {moment: 1}, words)
    _check_copy(exercise, {"send": 20}, "while it was being sent, for each of the first 20 pages")
    moments = ("read", "send", "before clear", "after clear", "collect", "pause")
    _check_copy(exercise, dict.fromkeys(moments, 4), "at all of these moments")


def _check_copy(exercise: Any, moments: dict[str, int], words: str) -> None:
    guest = _Guest(moments)
    exercise.migrate(guest, guest.send)
    expect(not guest.running, "`migrate` has returned, and the guest still runs at the source.")
    stale = [pfn for pfn in PAGES if guest.copies.get(pfn) != guest.memory[pfn]]
    if stale:
        found = guest.copies.get(stale[0], b"nothing")
        expect(
            False,
            f"The guest wrote to a page {words}. Page {stale[0]} holds"
            f" {guest.memory[stale[0]]!r} at the source and {found!r} at the destination. A page"
            " that changes after it was read has to be in the log, and the log is complete only"
            " when the guest is paused.",
        )
    expect(
        guest.sent <= MAX_SENT,
        f"The guest wrote to {guest.writes} pages, and the loop has sent {guest.sent} pages for a"
        f" memory of {len(PAGES)}. A page that is never cleared in the log is sent in every"
        " round.",
    )
