# SPDX-License-Identifier: Apache-2.0
"""Names of the cases and contenders of `bench.snapshot_path`."""

from __future__ import annotations

PYVMM = "pyvmm"
CHECKED = "plain file, CRC-32C"
FILE = "plain file"

SAVE, LOAD, LOAD_ON_ACCESS = "save", "load", "load on access"
MEMORY, DISK = "tmpfs", "disk"


def case_name(work: str, place: str) -> str:
    """Return the name of the case that does `work` with a file in `place`."""
    return f"{work}, {place}"
