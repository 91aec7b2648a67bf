# SPDX-License-Identifier: Apache-2.0
"""Memory of the lab, touched before a benchmark measures anything.

The lab's RAM is memory of an emulator on the host, which provides each page when it is first
touched. That takes a second or more for a GiB, and the first contender to use the memory would pay
for it: in a single round always the same one. Nothing returns the memory to the host, so all
contenders find it touched.
"""

from __future__ import annotations

import mmap
from contextlib import ExitStack

from pyvmm.memory.ram import MADV_POPULATE_WRITE
from pyvmm.sockets.lab_paths import in_lab
from pyvmm.units import MIB

_PIECE_BYTES = 64 * MIB


def touch_lab_memory(spared_bytes: int = 256 * MIB) -> None:
    """Touch the memory that is free, if this is the lab, but `spared_bytes` of it."""
    if not in_lab():
        return
    with ExitStack() as touched:
        for _ in range((free_bytes() - spared_bytes) // _PIECE_BYTES):
            piece = touched.enter_context(
                mmap.mmap(-1, _PIECE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            )
            piece.madvise(mmap.MADV_HUGEPAGE)
            piece.madvise(MADV_POPULATE_WRITE)


def free_bytes() -> int:
    """Return the memory that nothing uses."""
    with open("/proc/meminfo") as meminfo:
        sizes = dict(line.split(":") for line in meminfo)
    return int(sizes["MemFree"].split()[0]) * 1024
