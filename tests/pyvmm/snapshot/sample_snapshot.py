# SPDX-License-Identifier: Apache-2.0
"""Write the sample snapshot that `data/` keeps for each version of the format.

    python -m tests.pyvmm.snapshot.sample_snapshot tests/pyvmm/snapshot/data/v3.snapshot

Run it when the version of the format changes, and never again for that version: a file that was
written by a released pyvmm must stay readable. `data/README.md` has the commands that
wrote the others.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pyvmm.config import MachineConfig
from pyvmm.memory.ram import Ram
from pyvmm.snapshot.report import PageReport
from pyvmm.snapshot.writer import SnapshotWriter
from pyvmm.state.config_record import config_record
from pyvmm.state.records import Kind, Record
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES

CONFIG = MachineConfig(
    kernel=Path("/vmlinux"),
    initrd=Path("/initramfs"),
    command_line="console=ttyS0",
    ram_bytes=64 * MIB,
    vcpus=2,
    dialect="standard",
    offer=("reporting",),
)
PAGES = {1: b"\1", 513: b"\2"}
"""By page frame, the byte that fills it."""
REPORT = PageReport(2, 3, 5, CONFIG.ram_bytes // PAGE_BYTES - 10, 7, "answered")
PARTS = [Record("part", 1, b"one"), Record("part", 1, b"two", 1)]
KINDS = {"part": Kind(1, 100, max_instances=2)}


def write_sample(path: Path) -> None:
    """Write the sample with the current code."""
    ram = Ram(CONFIG.ram_bytes)
    with SnapshotWriter(path, ram.memory) as file:
        for pfn, byte in PAGES.items():
            ram.memory.write(pfn * PAGE_BYTES, byte * PAGE_BYTES)
            file.store(pfn // 512, 1 << pfn % 512, 1 << pfn % 512)
        file.finish([config_record(CONFIG), REPORT.record(), *PARTS])


if __name__ == "__main__":
    write_sample(Path(sys.argv[1]))
