# SPDX-License-Identifier: Apache-2.0
"""The longest waits of a snapshot for its file system.

`docs/reference/deadlines.md` lists them with all others. A system call on a file system that does
not respond cannot be interrupted, so the thread that made it is left behind.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SnapshotTimeouts:
    """Seconds after which a file system has failed."""

    open: float = 10.0
    """To check the path and create the file."""
    stall: float = 60.0
    """For one block of pages to be written."""
    sync: float = 600.0
    """To write everything to the disk and give the file its name; the guest runs meanwhile."""
    end: float = 5.0
    """For the file to be closed, when the snapshot has ended or the VM ends."""


SNAPSHOT_TIMEOUTS = SnapshotTimeouts()
