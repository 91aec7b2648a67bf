# SPDX-License-Identifier: Apache-2.0
"""Exercise of chapter 11: the device's side of free page hinting and free page reporting.

`FreePages` collects the hints of a round, with which a migration copies less, and acts on reports.
It has a bug: after some migrations programs in the guest find zeros in their memory. Find it and
mend it.
"""

from __future__ import annotations

from devices.ports import GuestRam
from pyvmm_native.runs import PageRuns

STOP, DONE = 0, 1
"""Reserved command ids (VIRTIO 1.2, 5.5.6.5)."""


class FreePages:
    """Serves the free page queue and the reporting queue of a guest with memory `ram`."""

    def __init__(self, ram: GuestRam) -> None:
        self.ram = ram
        self.command_id = STOP
        """The value of `free_page_hint_cmd_id`."""
        self.begun = False
        """The driver has sent the current command id: hints that follow belong to it."""
        self.hinted = PageRuns()

    def start(self, command_id: int) -> None:
        """Begin a round of hinting. The dirty log is on already."""
        self.command_id = command_id
        self.hinted = PageRuns()

    def on_command(self, command_id: int) -> None:
        """Take a command id that the driver has sent."""
        if command_id == STOP and self.begun:
            self.command_id = STOP
            self.ram.discard(self.hinted)
        self.begun = command_id == self.command_id != STOP

    def on_hint(self, pages: PageRuns) -> None:
        """Take pages that the driver hints."""
        if self.begun:
            self.hinted = self.hinted.union(pages)

    def on_report(self, pages: PageRuns, poison_val: int) -> None:
        """Take pages that the driver reports; it does not touch them before this returns."""
        if poison_val == 0:
            self.ram.discard(pages)

    def pages_to_copy(self, dirty: PageRuns) -> PageRuns:
        """Return the pages of the first round of a migration; `dirty` are those in the log."""
        return self.ram.pages.subtract(self.hinted).union(dirty)

    def finish(self) -> None:
        """End the migration, successful or not: the driver may use the hinted pages again."""
        self.hinted = PageRuns()
        self.command_id = DONE
