# SPDX-License-Identifier: Apache-2.0
"""Check of chapter 8: the balloon takes the guest's free pages, all of them and no others.

The exercise's `LargePageDriver` drives a real balloon in the standard dialect. The guest's memory
holds a pattern; a page that has lost it was discarded.
"""

from __future__ import annotations

from typing import Any

from devices.balloon.dialects import STANDARD
from devices.testing import VirtioDriver
from devices.testing.balloon import DEFLATE, INFLATE, BalloonBoard
from pyvmm.learn.checking import expect
from pyvmm_native.runs import PageRuns

GUEST_PAGE_BYTES = 16384
PFNS = GUEST_PAGE_BYTES // 4096
FIRST_GPA = 4 << 20
"""The guest's pages of the check begin here."""
USED_PAGES, FREE_PAGES = 8, 24
"""Every fourth page is in use by the guest."""
PATTERN = b"\xa5" * GUEST_PAGE_BYTES


class _Guest:
    """A guest whose pages hold PATTERN, with the exercise's driver."""

    def __init__(self, exercise: Any) -> None:
        self.board = BalloonBoard(STANDARD)
        self.registers = VirtioDriver(self.board).start()
        count = USED_PAGES + FREE_PAGES
        self.pages = [FIRST_GPA + GUEST_PAGE_BYTES * i for i in range(count)]
        self.used = self.pages[::4]
        for gpa in self.pages:
            self.board.ram.memory.write(gpa, PATTERN)
        free = [gpa for gpa in self.pages if gpa not in self.used]
        self.driver = exercise.LargePageDriver(self.registers, free)

    def resize(self, guest_pages: int) -> None:
        """Request a balloon of `guest_pages` pages of the guest."""
        self.board.balloon.set_target(guest_pages * PFNS)
        self.driver.resize()
        self._expect_no_refusal("inflate", INFLATE)
        self._expect_no_refusal("deflate", DEFLATE)

    def expect_actual(self, guest_pages: int) -> None:
        """Expect that the driver reports a balloon of `guest_pages` pages of the guest."""
        actual = self.registers.read_config(4)
        expect(
            actual == guest_pages * PFNS,
            f"The device requested num_pages = {guest_pages * PFNS}, and the driver reports"
            f" actual = {actual}. Both fields count 4 KiB pages (VIRTIO 1.2, 5.5.4 and"
            f" 5.5.6); a page of this guest is {PFNS} of them.",
        )

    def _expect_no_refusal(self, name: str, queue: int) -> None:
        refused = self.board.balloon.queues[queue].counters.bad_payloads
        if refused:
            events = self.board.tracer.events
            why = next(fields["why"] for event, fields in events if event.endswith("bad_payload"))
            expect(
                False,
                f"The device has refused an array on the {name} queue: {why}. Each number is a"
                " guest-physical address divided by 4096 (5.5.6).",
            )

    def discarded(self) -> PageRuns:
        """Return the 4 KiB pages that the device has discarded."""
        return self.board.ram.discarded_pages


def _pfns(pages: list[int]) -> PageRuns:
    return PageRuns((gpa // 4096, PFNS) for gpa in pages)


def _show(pages: PageRuns) -> str:
    """Return the first runs of `pages` as addresses."""
    runs = [f"{4096 * pfn:#x} to {4096 * (pfn + count) - 1:#x}" for pfn, count in pages]
    return ", ".join(runs[:3]) + (", ..." if len(runs) > 3 else "")


def check(exercise: Any) -> None:
    """Check `LargePageDriver` of the module `exercise`."""
    guest = _Guest(exercise)
    for guest_pages in (1, 5, 12):
        guest.resize(guest_pages)
        _expect_balloon_discarded(guest)
        guest.expect_actual(guest_pages)
    _check_deflate(guest)


def _expect_balloon_discarded(guest: _Guest) -> None:
    in_balloon = _pfns(guest.driver.balloon)
    lost = guest.discarded().subtract(in_balloon)
    expect(
        not lost,
        f"The device has discarded {_show(lost)}, which the driver never put in the balloon, so"
        " the guest has lost what was there. A page frame number is a guest-physical address"
        " divided by 4096, whatever the page size of the guest (VIRTIO 1.2, 5.5.6).",
    )
    kept = in_balloon.subtract(guest.discarded())
    expect(
        not kept,
        f"{kept.pages} of the {in_balloon.pages} 4 KiB pages in the balloon still take memory of"
        f" the host: {_show(kept)}. Each page of the guest has {PFNS} page frame numbers, and the"
        " array needs all of them.",
    )
    for gpa in guest.used:
        intact = guest.board.ram.memory.read(gpa, GUEST_PAGE_BYTES) == PATTERN
        expect(intact, f"The guest's page at {gpa:#x}, which is in use, has lost its contents.")


def _check_deflate(guest: _Guest) -> None:
    before = list(guest.driver.balloon)
    guest.resize(3)
    guest.expect_actual(3)
    balloon, free = guest.driver.balloon, guest.driver.free
    expect(
        sorted([*balloon, *free]) == sorted(set(guest.pages) - set(guest.used)),
        "After a deflate each page has to be either in the balloon or free, and is not.",
    )
    counted = guest.board.balloon.counters.deflate.pages
    taken_back = PFNS * (len(before) - len(balloon))
    expect(
        counted == taken_back,
        f"The driver has taken {taken_back} pages of 4 KiB out of the balloon, and its deflate"
        f" requests name {counted}.",
    )
