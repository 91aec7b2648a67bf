# SPDX-License-Identifier: Apache-2.0
"""Check of chapter 11: no hint costs the guest its data, and hints and reports still save work.

The check plays a guest that takes hinted pages back at the worst moments: before the device has
seen the hint, before STOP, and after the log was read.
"""

from __future__ import annotations

from typing import Any

from devices.testing import AnonymousRam
from pyvmm.learn.checking import expect
from pyvmm_native.runs import PageRuns

STOP, DONE = 0, 1
PAGE_BYTES = 4096
RAM_PAGES = 1024
FREE = PageRuns([(256, 512)])
"""Pages that the guest hints."""
NEW_DATA = b"new data"


class _Guest:
    """A guest that writes to its memory, with a dirty log and the exercise's `FreePages`."""

    def __init__(self, exercise: Any) -> None:
        self.ram = AnonymousRam((0, RAM_PAGES * PAGE_BYTES))
        self.device = exercise.FreePages(self.ram)
        self.dirty = PageRuns()
        self.written: dict[int, str] = {}
        """When the guest has written to each page, in words."""
        for pfn in range(RAM_PAGES):
            self.ram.memory.write(pfn * PAGE_BYTES, b"old data")

    def write(self, pfn: int, when: str) -> None:
        """Write to a page, which is in the dirty log afterwards."""
        self.ram.memory.write(pfn * PAGE_BYTES, NEW_DATA)
        self.written[pfn] = when
        self.dirty = self.dirty.union(PageRuns([(pfn, 1)]))

    def read_log(self) -> PageRuns:
        """Return the pages written since the log was last read."""
        dirty, self.dirty = self.dirty, PageRuns()
        return dirty

    def expect_data(self) -> None:
        """Expect every page that the guest has written to hold what it wrote."""
        for pfn, when in self.written.items():
            found = self.ram.memory.read(pfn * PAGE_BYTES, len(NEW_DATA))
            expect(
                found == NEW_DATA,
                f"The guest hinted page {pfn}, took it back and wrote {NEW_DATA!r} {when}. Now the"
                f" page holds {found!r}: it was discarded. A hint says that a page need not be"
                " copied. The guest may write to the page at any moment, and the device may change"
                " only a page that the guest has not written to (VIRTIO 1.2, 5.5.6.5.2).",
            )


def check(exercise: Any) -> None:
    """Check `FreePages` of the module `exercise`."""
    _check_reused_pages(exercise)
    _check_stale_hints(exercise)
    _check_reports(exercise)


def _check_reused_pages(exercise: Any) -> None:
    guest = _Guest(exercise)
    device = guest.device
    device.start(7)
    device.on_command(7)
    guest.write(300, "before the device saw the hint")
    device.on_hint(FREE)
    guest.expect_data()
    guest.write(301, "before STOP")
    device.on_command(STOP)
    guest.expect_data()
    dirty = guest.read_log()
    guest.write(302, "after the host had read the dirty log")
    copied = device.pages_to_copy(dirty)
    guest.expect_data()
    _expect_first_round(copied, dirty)
    device.finish()
    guest.expect_data()
    expect(
        device.command_id == DONE,
        "After the migration free_page_hint_cmd_id has to be DONE, so that the driver releases its"
        " pages (VIRTIO 1.2, 5.5.6.5.2).",
    )


def _expect_first_round(copied: PageRuns, dirty: PageRuns) -> None:
    missing = dirty.subtract(copied)
    expect(
        not missing,
        f"The first round leaves out {missing}, which the guest has written to since the hint: what"
        " the dirty log names has to be copied.",
    )
    ram = PageRuns([(0, RAM_PAGES)])
    missing = ram.subtract(FREE).subtract(copied)
    expect(not missing, f"The first round leaves out {missing}, which were not hinted.")
    useless = copied.intersect(FREE).subtract(dirty)
    expect(
        not useless,
        f"The first round copies {useless.pages} pages that were hinted and not written to since:"
        " hints are there to leave them out.",
    )


def _check_stale_hints(exercise: Any) -> None:
    guest = _Guest(exercise)
    device = guest.device
    device.start(7)
    device.on_hint(FREE)
    device.on_command(6)
    device.on_hint(FREE)
    device.on_command(STOP)
    copied = device.pages_to_copy(PageRuns())
    expect(
        copied.pages == RAM_PAGES,
        "Pages that came before any command id, or after another id than the current one, were"
        " left out of the copy. The device MUST ignore them (VIRTIO 1.2, 5.5.6.5.2).",
    )


def _check_reports(exercise: Any) -> None:
    guest = _Guest(exercise)
    guest.device.on_report(FREE, 0)
    expect(
        guest.ram.discarded_pages == FREE,
        f"The driver has reported {FREE}, and the device has discarded"
        f" {guest.ram.discarded_pages}. A driver does not touch reported pages before the buffer is"
        " used, so the device may discard them then (VIRTIO 1.2, 5.5.6.7).",
    )
    guest = _Guest(exercise)
    guest.device.on_report(FREE, 0xAA)
    expect(
        not guest.ram.discarded_pages,
        "A driver with poison_val 0xaa expects its free pages to hold that pattern. A discarded"
        " page reads as zeros, so the report must not discard it (VIRTIO 1.2, 5.5.6.7.2).",
    )
