# SPDX-License-Identifier: Apache-2.0
"""RAM of `bench.migration_path` and `bench.snapshot_path`: all random bytes, never written to."""

from __future__ import annotations

import os

from bench.touched_ram import TouchedRam
from pyvmm.units import MIB
from pyvmm_native.checksum import crc32c
from pyvmm_native.runs import PageRuns


class EmptyLog:
    """Satisfies `pyvmm.memory.dirty_log.DirtyLog` for a guest that writes nothing."""

    def collect(self) -> PageRuns:
        return PageRuns()

    def clear(self, start_pfn: int, pages: int) -> None:
        pass


def fill(ram: TouchedRam) -> None:
    """Fill all RAM with random bytes, no MiB of which is like another."""
    block = os.urandom(MIB)
    for _, area in ram.areas:
        for at in range(0, len(area), MIB):
            area[at : at + MIB] = block
            area[at : at + 8] = (1 + at).to_bytes(8, "little")


def clear(ram: TouchedRam) -> None:
    """Fill all RAM with zeros, in place."""
    zeros = bytes(MIB)
    for _, area in ram.areas:
        for at in range(0, len(area), MIB):
            area[at : at + MIB] = zeros


def checksum_of(ram: TouchedRam) -> int:
    """Return the CRC-32C of all RAM."""
    crc = 0
    for _, area in ram.areas:
        crc = crc32c(area, crc)
    return crc
