# SPDX-License-Identifier: Apache-2.0
"""The most memory that this process has had resident.

The kernel hands `ru_maxrss` on from the program that started this one, so in a small program of a
large test process it never changes.
"""

from __future__ import annotations

from pathlib import Path


def peak_kib() -> int:
    """Return the peak in KiB (VmHWM, proc_pid_status(5))."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
